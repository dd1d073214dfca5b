//! As much HTTP as the tests need.

use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

/// An answer, its headers in lower case.
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The body of an answer with this status.
    #[track_caller]
    pub fn json(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.body);
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }
}

/// Sends a request and leaves its answer to be read.
pub fn send(port: u16, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> TcpStream {
    let mut io = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let mut text = format!("{method} {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    text += &format!("content-length: {}\r\n\r\n{body}", body.len());
    // A server that has seen enough may have closed already.
    let _ = io.write_all(text.as_bytes());
    io
}

pub fn call(port: u16, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Response {
    let mut reader = BufReader::new(send(port, method, path, headers, body));
    let (status, headers) = head(&mut reader).expect("an answer");
    let chunked = headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked");
    let mut body = String::new();
    if chunked {
        while let Some(text) = chunk(&mut reader) {
            body += &text;
        }
    } else {
        reader.read_to_string(&mut body).unwrap();
    }
    Response { status, headers, body }
}

/// The first line and the headers; `None` where the connection was closed.
pub fn head(reader: &mut impl BufRead) -> Option<(u16, Vec<(String, String)>)> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let status = line.split(' ').nth(1)?.parse().ok()?;
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) => headers.push((name.to_lowercase(), value.to_string())),
            None => return Some((status, headers)),
        }
    }
}

/// A chunk of a body; `None` at its end.
fn chunk(reader: &mut impl BufRead) -> Option<String> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let size = usize::from_str_radix(line.trim(), 16).ok()?;
    let mut bytes = vec![0; size + 2];
    reader.read_exact(&mut bytes).ok()?;
    bytes.truncate(size);
    (size > 0).then(|| String::from_utf8(bytes).unwrap())
}

/// The events of a stream, as they come.
pub struct Events {
    reader: BufReader<TcpStream>,
    text: String,
}

impl Events {
    pub fn of(io: TcpStream) -> Self {
        let mut reader = BufReader::new(io);
        let (status, headers) = head(&mut reader).expect("an answer");
        assert_eq!(status, 200);
        assert!(headers.contains(&("content-type".into(), "text/event-stream".into())), "{headers:?}");
        Self { reader, text: String::new() }
    }
}

impl Iterator for Events {
    /// The event's name, or nothing, and its data.
    type Item = (String, String);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(end) = self.text.find("\n\n") {
                let event: String = self.text.drain(..end + 2).collect();
                let line = |name: &str| event.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default();
                return Some((line("event: ").to_string(), line("data: ").to_string()));
            }
            self.text += &chunk(&mut self.reader)?;
        }
    }
}

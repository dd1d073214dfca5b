//! Many clients at once, of all manners.

use serde_json::{Value, json};
use std::io::{BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;
use ternlm::serve::Options;

use crate::client::{Events, head, send};
use crate::place::{Form, Place, text};

/// Well-behaved requests among others that break off, send garbage, close half or read nothing: every one of the first is
/// answered as it is alone, and in the end nothing is left over.
#[test]
fn nothing_is_lost_and_nothing_is_left() {
    let options =
        Options { patience: Duration::from_secs(5), queue: 256, context: 2048, ..Options::default() };
    let place = Place::with(Form::Int8, options);
    let body =
        |i: u64| json!({ "prompt": text(i % 5, 140), "max_tokens": 12, "temperature": 1, "seed": i % 5 });
    let alone: Vec<Value> =
        (0..5).map(|i| place.post("/v1/completions", &body(i)).json(200)["choices"].clone()).collect();
    let port = place.port;
    let one = |i: u64| {
        let long = json!({ "prompt": text(i, 30), "max_tokens": 500, "stream": true }).to_string();
        match i % 6 {
            0 | 1 => {
                let answer = place.post("/v1/completions", &body(i)).json(200);
                assert_eq!(answer["choices"], alone[i as usize % 5], "request {i}");
            }
            2 => drop(Events::of(send(port, "POST", "/v1/completions", &[], &long)).take(3).count()),
            3 => {
                let mut io = send(port, "POST", "/v1/completions", &[], &long);
                io.shutdown(Shutdown::Write).unwrap();
                let _ = io.read(&mut [0; 64]);
            }
            4 => {
                let mut io = TcpStream::connect(("127.0.0.1", port)).unwrap();
                let _ = io.write_all(text(i, 200).as_bytes());
                let _ = head(&mut BufReader::new(io));
            }
            _ => drop(send(port, "POST", "/v1/chat/completions", &[], "{\"messages\": [{}]}")),
        }
    };
    thread::scope(|scope| {
        for worker in 0..24 {
            scope.spawn(move || (0..10).for_each(|i| one(worker * 10 + i)));
        }
    });
    place.until("running", |n| n == 0);
    place.until("waiting", |n| n == 0);
    place.until("connections", |n| n <= 1);
    let kept = place.metric("pages_in_use");
    assert!(kept <= 8 * 17, "{kept} pages");
}

//! What the program says: results on standard output, remarks on standard error.

use serde::Serialize;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::Mutex;

use crate::error::{Error, Result};

/// A line on standard output.
macro_rules! say {
    () => { say!("") };
    ($($arg:tt)*) => {
        $crate::cli::output::line(format_args!($($arg)*))
    };
}

/// A line on standard error. There is nowhere to say that it could not be written.
macro_rules! tell {
    ($($arg:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), $($arg)*);
    }};
}

/// The first failure to write standard output, which [`finish`] reports. A training goes on to its checkpoint.
static FAILED: Mutex<Option<io::Error>> = Mutex::new(None);

pub fn line(text: fmt::Arguments<'_>) {
    write(|out| writeln!(out, "{text}"));
}

/// Shows `text` at once. False when nobody will see it: the disk is full, or the reader has gone.
pub fn piece(text: &str) -> bool {
    write(|out| out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// A value as JSON.
pub fn say_json(value: &impl Serialize) {
    say!("{}", serde_json::to_string_pretty(value).expect("plain data has a JSON form"));
}

/// Runs `write` unless standard output has failed before.
pub fn write(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> bool {
    let mut failed = FAILED.lock().unwrap_or_else(|e| e.into_inner());
    if failed.is_none() {
        *failed = write(&mut io::stdout()).err();
    }
    failed.is_none()
}

/// Brings out what is still buffered.
///
/// # Errors
/// Anything that could not be written, but for a reader that has gone away (`| head`).
pub fn finish() -> Result<()> {
    write(|out| out.flush());
    match FAILED.lock().unwrap_or_else(|e| e.into_inner()).take() {
        Some(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::io("write", "standard output")(error))
        }
        _ => Ok(()),
    }
}

/// Whether log lines are coloured: on a terminal, unless `NO_COLOR` (no-color.org) is set.
pub fn coloured() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

//! A NumPy array: header, byte 0, data; or a whole file as it is.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ternlm::formats::npy;
use ternlm_fuzz::{file, parts};

fuzz_target!(|data: &[u8]| {
    let whole = if data.starts_with(b"{") {
        let [header, values] = parts(data);
        let length = (header.len() as u32).to_le_bytes();
        [&b"\x93NUMPY\x02\x00"[..], &length, header, values].concat()
    } else {
        data.to_vec()
    };
    if let Ok((shape, values)) = npy::read(file("a.npy", &whole)) {
        assert_eq!(shape.iter().product::<usize>(), values.len());
    }
});

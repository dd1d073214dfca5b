//! A chat template that may write calls of tools, in whatever form, and an answer: what a stream shows of it is what the whole
//! holds, text and calls.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::json;
use ternlm::serve::api::{Endpoint, Work, read};
use ternlm_fuzz::{parts, served, streamed_as_whole};

fuzz_target!(|data: &[u8]| {
    let [template, said] = parts(data);
    let Some(served) = served(template) else { return };
    let said = String::from_utf8_lossy(said);
    for (several, cut) in [(true, false), (false, true)] {
        let body = json!({
            "messages": [{"role": "user", "content": "a"}], "parallel_tool_calls": several,
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        });
        match read(Endpoint::Chat, body.to_string().as_bytes(), &served) {
            Ok(Work::Ask(ask)) => streamed_as_whole(*ask, &said, cut),
            Ok(Work::Now(_)) => panic!("an answer without a model"),
            Err(wrong) => assert!((400..500).contains(&wrong.status), "{wrong:?}"),
        }
    }
});

//! Tests of `ternlm::text`: fixtures made here, and real files where `shared/data` (or `TERNLM_DATA`) exists.

#[path = "../common/mod.rs"]
mod common;
mod corpus;
mod hostile;
mod reading;
mod reference;
mod tokenizer;
mod training;

use common::data as shared;

/// Some text of several scripts, several kilobytes.
fn mixed_text() -> String {
    let lines = [
        "The quick brown fox doesn't jump over 12,345 lazy dogs.\n",
        "吾輩は猫である。名前はまだ無い。\n\n",
        "지미 카터는 조지아주 섬터 카운티 플레인스 마을에서 태어났다.  두 칸.\n",
        "\tfn main() { println!(\"{}\", 1 << 20); }\r\n",
        "Ünïcödé, naïve café — “quotes” … 🙂👩‍👩‍👧 e\u{301}\u{a0}\u{3000} end   \n",
    ];
    (0..40).map(|i| lines[i % lines.len()].repeat(1 + i % 3)).collect()
}

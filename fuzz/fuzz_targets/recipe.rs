//! A recipe; what is read is written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::path::Path;
use ternlm::config::Recipe;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(recipe) = toml::from_str::<Recipe>(text) else { return };
    if recipe.validate(Path::new("recipe.toml")).is_err() {
        return;
    }
    let written = toml::to_string_pretty(&recipe).expect("a recipe has a TOML form");
    assert_eq!(toml::from_str::<Recipe>(&written).expect("what was written"), recipe);
});

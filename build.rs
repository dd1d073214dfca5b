//! Tells the program which compiler made it: reports name it.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    if let Ok(out) = Command::new(rustc).arg("--version").output()
        && let Ok(version) = String::from_utf8(out.stdout)
    {
        println!("cargo::rustc-env=TERNLM_RUSTC={}", version.trim());
    }
}

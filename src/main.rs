//! Parse, run, exit.

fn main() -> std::process::ExitCode {
    ternlm::cli::main()
}

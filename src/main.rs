//! Parse, run, exit.

#[global_allocator]
static MEMORY: ternlm::kernels::LargePages = ternlm::kernels::LargePages;

fn main() -> std::process::ExitCode {
    ternlm::cli::main()
}

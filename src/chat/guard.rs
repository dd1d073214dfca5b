//! Renders a chat template that nobody vouches for: bounded time, bounded memory, an error instead of a crash.
//!
//! The engine's fuel bounds the number of instructions, but `x ~ x` doubles a string with each. So the syntax tree is
//! rewritten before it is compiled: what can make a large value becomes a call of a function that pays for it out of
//! a byte budget first. Filters, tests and methods are our own, and pay as well.

use minijinja::machinery::{self, CodeGenerator, Instruction, Instructions, Token};
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Error, Value};

use super::budget::{BUDGET, Budget, refuse};
use super::{filters, ops, predicates, rewrite, values};

/// Bytes of a template. Published ones have up to about 30,000.
pub(super) const MAX_TEMPLATE: usize = 128 << 10;
/// Instructions of one rendering; a thousand messages need about a hundred thousand.
const FUEL: u64 = 2_000_000;
/// Tokens within one `{% %}`: a longer chain of operators would make the compiler recurse deeply.
const MAX_TAG: usize = 1024;
/// Room for the deepest recursion the limits above allow.
const STACK: usize = 64 << 20;

/// Renders `source` with the functions in `setup` added. Errors are the engine's own text.
pub(super) fn render(
    source: &str,
    context: Value,
    setup: impl FnOnce(&mut Environment<'_>, &Budget) + Send,
) -> Result<String, String> {
    with_room(|| render_here(source, context, setup))
}

/// Parses `source`, so that a damaged template is found when it is loaded.
pub(super) fn check(source: &str) -> Result<(), String> {
    with_room(|| compile(source).map(drop))
}

/// Runs `work` on a large stack.
fn with_room<T: Send>(work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, String> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work);
        let thread = thread.map_err(|e| format!("no thread for the template engine: {e}"))?;
        let result = thread.join().map_err(|_| "the template engine gave up".to_owned())?;
        result.map_err(|e| e.to_string())
    })
}

fn render_here(
    source: &str,
    context: Value,
    setup: impl FnOnce(&mut Environment<'_>, &Budget),
) -> Result<String, Error> {
    let (instructions, fuel) = compile(source)?;
    let budget = Budget::new();
    let mut env = environment(&budget);
    setup(&mut env, &budget);
    env.set_fuel(Some(fuel));
    let mut text = String::new();
    let mut out = machinery::make_string_output(&mut text);
    machinery::eval(&env, &instructions, context, &Default::default(), &mut out, AutoEscape::None)?;
    Ok(text)
}

fn syntax() -> Result<SyntaxConfig, Error> {
    SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()
}

/// The guarded instructions and their fuel.
fn compile(source: &str) -> Result<(Instructions<'_>, u64), Error> {
    check_tokens(source)?;
    let tree = machinery::parse(source, "chat_template", syntax()?)?;
    let mut generator = CodeGenerator::new("chat_template", source);
    generator.compile_stmt(&rewrite::template(&tree)?);
    let (mut instructions, _) = generator.finish();
    // Text between tags costs one instruction however long it is.
    let mut longest_text = 1;
    for i in 0.. {
        let Some(instruction) = instructions.get_mut(i) else { break };
        if let Instruction::EmitRaw(text) = instruction {
            longest_text = longest_text.max(text.len() as u64);
        }
    }
    Ok((instructions, FUEL.min(BUDGET / longest_text)))
}

/// Refuses what would be costly before the first instruction runs.
fn check_tokens(source: &str) -> Result<(), Error> {
    let mut tag = 0;
    for token in machinery::tokenize(source, false, syntax()?) {
        tag = match token?.0 {
            Token::TemplateData(_) | Token::VariableStart | Token::BlockStart => 0,
            _ => tag + 1,
        };
        if tag > MAX_TAG {
            return Err(refuse(format!("more than {MAX_TAG} tokens in one tag")));
        }
    }
    Ok(())
}

fn environment<'a>(budget: &Budget) -> Environment<'a> {
    let mut env = Environment::empty();
    let paid = budget.clone();
    env.set_formatter(move |out, _, value| {
        let wrong = |_| refuse("the text was not taken");
        match value.as_str() {
            Some(text) => {
                paid.take(text.len())?;
                out.write_str(text).map_err(wrong)
            }
            None => out.write_str(&values::text(&paid, value)?).map_err(wrong),
        }
    });
    ops::add_to(&mut env, budget);
    filters::add_to(&mut env, budget);
    predicates::add_to(&mut env, budget);
    env
}

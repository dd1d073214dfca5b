//! Renders a chat template that nobody vouches for: bounded time, bounded memory, an error instead of a crash.
//!
//! The engine's fuel bounds the number of instructions, but `x ~ x` doubles a string with each. So the instructions
//! that can make a large value are replaced one for one by calls of functions that pay for it out of a byte budget
//! first, and filters and methods are a list of ones whose cost is known.

use minijinja::machinery::{self, CodeGenerator, Instruction, Instructions, Token};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Rest, Tuple, ValueOrKwargs};
use minijinja::{AutoEscape, Environment, Error, State, Value, context, escape_formatter};
use minijinja::{filters, functions, tests as jinja_tests};
use minijinja_contrib::pycompat;
use serde::Serialize;
use std::collections::BTreeMap;

use super::chat_budget::{BUDGET, Budget, refuse};

/// Characters of a template. Published ones have up to about 30,000.
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
    setup: impl FnOnce(&mut Environment<'_>) + Send,
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
    setup: impl FnOnce(&mut Environment<'_>),
) -> Result<String, Error> {
    let (instructions, fuel) = compile(source)?;
    let mut env = environment(&Budget::new());
    setup(&mut env);
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
    generator.compile_stmt(&tree);
    let (mut instructions, blocks) = generator.finish();
    if !blocks.is_empty() {
        return Err(refuse("blocks and template inheritance are not supported"));
    }
    let mut longest_text = 1;
    for i in 0.. {
        let Some(instruction) = instructions.get_mut(i) else { break };
        let guarded = |name, args: usize| -> Result<_, Error> {
            let args = u16::try_from(args).map_err(|_| refuse("too many items"))?;
            Ok(Instruction::CallFunction(name, Some(args)))
        };
        *instruction = match instruction {
            Instruction::Add => guarded("+", 2)?,
            Instruction::Mul => guarded("*", 2)?,
            Instruction::StringConcat => guarded("~", 2)?,
            Instruction::Slice => guarded("[:]", 4)?,
            Instruction::BuildList(Some(n)) => guarded("[]", *n)?,
            Instruction::BuildTuple(Some(n)) => guarded("()", *n)?,
            Instruction::BuildMap(n) => guarded("{}", 2 * *n)?,
            Instruction::Eq => guarded("==", 2)?,
            Instruction::Ne => guarded("!=", 2)?,
            Instruction::Lt => guarded("<", 2)?,
            Instruction::Lte => guarded("<=", 2)?,
            Instruction::Gt => guarded(">", 2)?,
            Instruction::Gte => guarded(">=", 2)?,
            Instruction::In => guarded("in", 2)?,
            Instruction::CompareAndPreserve(_) => {
                return Err(refuse("chained comparisons are not supported"));
            }
            Instruction::EmitRaw(text) => {
                longest_text = longest_text.max(text.len() as u64);
                continue;
            }
            _ => continue,
        };
    }
    // Text between tags costs one instruction however long it is.
    Ok((instructions, FUEL.min(BUDGET / longest_text)))
}

/// Refuses what would be costly before the first instruction runs: constants are folded by the compiler.
fn check_tokens(source: &str) -> Result<(), Error> {
    let mut previous = Token::Comma;
    let mut tag = 0;
    for token in machinery::tokenize(source, false, syntax()?) {
        let (token, _) = token?;
        tag = match token {
            Token::TemplateData(_) | Token::VariableStart | Token::BlockStart => 0,
            _ => tag + 1,
        };
        if tag > MAX_TAG {
            return Err(refuse(format!("more than {MAX_TAG} tokens in one tag")));
        }
        let repeats = |t: &Token| {
            let brackets =
                matches!(t, Token::BracketOpen | Token::BracketClose | Token::ParenOpen | Token::ParenClose);
            brackets || matches!(t, Token::Str(_) | Token::String(_))
        };
        if (matches!(token, Token::Mul) && repeats(&previous))
            || (matches!(previous, Token::Mul) && repeats(&token))
        {
            return Err(refuse("a repeated string or list is not supported"));
        }
        previous = token;
    }
    Ok(())
}

fn environment<'a>(budget: &Budget) -> Environment<'a> {
    let mut env = Environment::empty();
    let paid = budget.clone();
    env.set_formatter(move |out, state, value| {
        paid.walk(value, 0)?;
        escape_formatter(out, state, value)
    });
    let paid = budget.clone();
    env.set_unknown_method_callback(move |state, value, method, args| {
        if method == "format" {
            return Err(refuse("str.format is not supported"));
        }
        let all: Vec<Value> = std::iter::once(value).chain(args).cloned().collect();
        all.iter().try_for_each(|v| paid.copy(v))?;
        paid.multiplied(method, &all)?;
        if method == "join" || method == "count" {
            paid.walk_all(&all)?;
        }
        paid.solid(pycompat::unknown_method_callback(state, value, method, args)?)
    });
    add_operators(&mut env, budget);
    add_filters(&mut env, budget);
    add_tests(&mut env, budget);
    env
}

/// Evaluates an operator by the engine's own rules.
fn evaluate(expression: &str, a: &Value, b: &Value) -> Result<Value, Error> {
    Environment::empty().compile_expression(expression)?.eval(context! { a => a, b => b })
}

fn add_operators(env: &mut Environment<'_>, budget: &Budget) {
    let paid = budget.clone();
    env.add_function("+", move |a: Value, b: Value| {
        paid.copy(&a)?;
        paid.copy(&b)?;
        match (a.as_str(), b.as_str()) {
            (Some(a), Some(b)) => Ok(Value::from([a, b].concat())),
            _ => paid.solid(evaluate("a + b", &a, &b)?),
        }
    });
    env.add_function("*", move |a: Value, b: Value| {
        if !(a.is_number() && b.is_number()) {
            return Err(refuse("a repeated string or list is not supported"));
        }
        evaluate("a * b", &a, &b)
    });
    let paid = budget.clone();
    env.add_function("~", move |a: Value, b: Value| {
        paid.walk(&a, 0)?;
        paid.walk(&b, 0)?;
        Ok::<_, Error>(Value::from(format!("{a}{b}")))
    });
    let paid = budget.clone();
    env.add_function("[:]", move |v: Value, start: Value, stop: Value, step: Value| {
        paid.copy(&v)?;
        let sliced = Environment::empty().compile_expression("v[a:b:c]")?.eval(context! {
            v, a => start, b => stop, c => step
        })?;
        paid.solid(sliced)
    });
    let paid = budget.clone();
    env.add_function("[]", move |items: Rest<Value>| {
        paid.walk_all(&items)?;
        Ok::<_, Error>(Value::from(items.0))
    });
    let paid = budget.clone();
    env.add_function("()", move |items: Rest<Value>| {
        paid.walk_all(&items)?;
        Ok::<_, Error>(Value::from(Tuple::from(items.0)))
    });
    let paid = budget.clone();
    env.add_function("{}", move |items: Rest<Value>| {
        paid.walk_all(&items)?;
        Ok::<_, Error>(Value::from(
            items.chunks_exact(2).map(|kv| (kv[0].clone(), kv[1].clone())).collect::<BTreeMap<_, _>>(),
        ))
    });
    type Comparison = fn(&Value, &Value) -> bool;
    let comparisons: [(&str, Comparison); 6] = [
        ("==", |a, b| a == b),
        ("!=", |a, b| a != b),
        ("<", |a, b| a < b),
        ("<=", |a, b| a <= b),
        (">", |a, b| a > b),
        (">=", |a, b| a >= b),
    ];
    for (name, compare) in comparisons {
        let paid = budget.clone();
        let guarded = move |a: Value, b: Value| {
            paid.walk(&a, 0)?;
            paid.walk(&b, 0)?;
            Ok::<_, Error>(compare(&a, &b))
        };
        env.add_function(name, guarded.clone());
        env.add_test(name, guarded);
    }
    let paid = budget.clone();
    let contains = move |a: Value, b: Value| {
        paid.walk(&a, 0)?;
        paid.walk(&b, 0)?;
        evaluate("a in b", &a, &b).map(|v| v.is_true())
    };
    env.add_function("in", contains.clone());
    env.add_test("in", contains);
    env.add_function("range", functions::range);
    for (name, function) in [
        ("namespace", Value::from_function(functions::namespace)),
        ("dict", Value::from_function(functions::dict)),
    ] {
        let paid = budget.clone();
        env.add_function(name, move |state: &mut State, args: Rest<ValueOrKwargs>| {
            let args = args.into_values();
            paid.walk_all(&args)?;
            function.call(state, &args)
        });
    }
}

fn add_filters(env: &mut Environment<'_>, budget: &Budget) {
    macro_rules! free {
        ($($name:literal => $filter:ident),*) => { $( env.add_filter($name, filters::$filter); )* };
    }
    // These make nothing larger than a number or a reference.
    free!("length" => length, "count" => length, "first" => first, "default" => default, "d" => default,
        "int" => int, "float" => float, "abs" => abs, "round" => round, "attr" => attr, "bool" => bool);
    let mut paid = |name: &'static str, filter: Value| {
        let paid = budget.clone();
        env.add_filter(name, move |state: &mut State, args: Rest<ValueOrKwargs>| {
            let args = args.into_values();
            paid.walk_all(&args)?;
            paid.multiplied(name, &args)?;
            paid.solid(filter.call(state, &args)?)
        });
    };
    macro_rules! linear {
        ($($name:ident),*) => { $( paid(stringify!($name), Value::from_function(filters::$name)); )* };
    }
    linear!(
        upper, lower, title, capitalize, replace, dictsort, items, reverse, trim, join, split, lines, last
    );
    linear!(min, max, sort, list, string, select, selectattr, reject, rejectattr, map, unique, safe, escape);
    paid("e", Value::from_function(filters::escape));
    paid("tojson", Value::from_function(tojson));
}

fn add_tests(env: &mut Environment<'_>, budget: &Budget) {
    macro_rules! tests {
        ($($name:literal => $test:ident),*) => { $( env.add_test($name, jinja_tests::$test); )* };
    }
    tests!("defined" => is_defined, "undefined" => is_undefined, "none" => is_none, "string" => is_string,
        "number" => is_number, "integer" => is_integer, "float" => is_float, "boolean" => is_boolean,
        "true" => is_true, "false" => is_false, "odd" => is_odd, "even" => is_even,
        "sequence" => is_sequence, "iterable" => is_iterable, "mapping" => is_mapping,
        "divisibleby" => is_divisibleby, "startingwith" => is_startingwith, "endingwith" => is_endingwith);
    for (name, equal) in [("eq", true), ("equalto", true), ("ne", false)] {
        let paid = budget.clone();
        env.add_test(name, move |a: Value, b: Value| {
            paid.walk(&a, 0)?;
            paid.walk(&b, 0)?;
            Ok::<_, Error>((a == b) == equal)
        });
    }
}

/// `json.dumps(value, ensure_ascii=False)` as in Hugging Face templates: no HTML escapes, a space after separators.
fn tojson(value: Value, options: minijinja::value::Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Not ours to honour, but common.
    let _: (Option<Value>, Option<Value>) = (options.get("ensure_ascii")?, options.get("sort_keys")?);
    options.assert_all_used()?;
    let mut text = Vec::new();
    let spaces = " ".repeat(indent.unwrap_or(0).min(8));
    let written = match indent {
        Some(_) => {
            let pretty = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, pretty))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, Spaced)),
    };
    written.map_err(|e| refuse(format!("tojson: {e}")))?;
    String::from_utf8(text).map_err(|e| refuse(format!("tojson: {e}")))
}

struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        out.write_all(b": ")
    }
}

//! Jinja's tests: what may stand behind `is`.

use minijinja::value::{Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, State, Value};

use super::budget::{Budget, refuse};
use super::filters;
use super::ops::{self, Cx};
use super::values::*;

type Test = fn(&mut Cx<'_, '_, '_>, &Value, &[Value]) -> Result<bool, Error>;

fn other<'v>(args: &'v [Value], name: &str) -> Result<&'v Value, Error> {
    args.first().ok_or_else(|| refuse(format!("is {name}: expected a value")))
}

fn even(v: &Value) -> Result<bool, Error> {
    match number(v) {
        Some(Num::Int(i)) => Ok(i % 2 == 0),
        Some(Num::Float(f)) => Ok(f % 2.0 == 0.0),
        None => Err(refuse(format!("is even: expected a number, found {}", type_name(v)))),
    }
}

pub(super) fn add_to(env: &mut Environment<'_>, budget: &Budget) {
    let kinds: [(&str, Test); 20] = [
        ("defined", |_, v, _| Ok(!v.is_undefined())),
        ("undefined", |_, v, _| Ok(v.is_undefined())),
        ("none", |_, v, _| Ok(v.is_none())),
        ("boolean", |_, v, _| Ok(v.kind() == ValueKind::Bool)),
        ("true", |_, v, _| Ok(v.kind() == ValueKind::Bool && v.is_true())),
        ("false", |_, v, _| Ok(v.kind() == ValueKind::Bool && !v.is_true())),
        ("integer", |_, v, _| Ok(v.is_integer())),
        ("float", |_, v, _| Ok(v.is_number() && !v.is_integer())),
        ("number", |_, v, _| Ok(number(v).is_some())),
        ("string", |_, v, _| Ok(v.as_str().is_some())),
        ("mapping", |_, v, _| Ok(is_dict(v))),
        // Whatever has a length and items.
        ("sequence", |_, v, _| Ok(v.as_str().is_some() || v.is_undefined() || is_list(v) || is_dict(v))),
        ("iterable", |_, v, _| {
            let yes = matches!(
                v.kind(),
                ValueKind::String | ValueKind::Undefined | ValueKind::Seq | ValueKind::Iterable
            );
            Ok(yes || is_dict(v))
        }),
        ("callable", |_, v, _| {
            let object = v.as_object().map_or("", |o| o.type_name());
            Ok(matches!(v.kind(), ValueKind::Plain | ValueKind::Undefined) || object.contains("Macro"))
        }),
        ("even", |_, v, _| even(v)),
        ("odd", |_, v, _| even(v).map(|even| !even)),
        ("lower", |cx, v, _| {
            text(cx.budget, v)
                .map(|t| t.chars().any(char::is_lowercase) && !t.chars().any(char::is_uppercase))
        }),
        ("upper", |cx, v, _| {
            text(cx.budget, v)
                .map(|t| t.chars().any(char::is_uppercase) && !t.chars().any(char::is_lowercase))
        }),
        ("escaped", |_, v, _| Ok(v.is_safe())),
        ("divisibleby", |_, v, args| match (integer(v), integer(other(args, "divisibleby")?)) {
            // The least number by -1 has no quotient, and yet no rest.
            (Some(a), Some(b)) if b != 0 => Ok(a.wrapping_rem(b) == 0),
            _ => Err(refuse("is divisibleby: expected two ints, the second not 0")),
        }),
    ];
    let mut add = |name: &'static str, test: Test| {
        let budget = budget.clone();
        env.add_test(name, move |state: &mut State, args: Rest<ValueOrKwargs>| {
            let args = args.into_values();
            let value = args.first().cloned().unwrap_or_default();
            test(&mut Cx { budget: &budget, state }, &value, args.get(1..).unwrap_or_default())
        });
    };
    for (name, test) in kinds {
        add(name, test);
    }
    macro_rules! comparisons {
        ($($op:literal: $($name:literal),*;)*) => { $( $( add($name, |cx, v, args| {
            ops::compare(cx.budget, $op, v, other(args, $name)?)
        }); )* )* };
    }
    comparisons!(
        "==": "==", "eq", "equalto";
        "!=": "!=", "ne";
        "<": "<", "lt", "lessthan";
        "<=": "<=", "le";
        ">": ">", "gt", "greaterthan";
        ">=": ">=", "ge";
        "in": "in";
    );
    add("sameas", |cx, v, args| {
        let other = other(args, "sameas")?;
        // Objects that are equal are taken for the same; scalars must also have one type.
        Ok(type_name(v) == type_name(other) && equal(cx.budget, v, other)?)
    });
    add("filter", |_, v, _| Ok(v.as_str().is_some_and(filters::exists)));
}

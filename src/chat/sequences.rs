//! Jinja's filters of lists and dictionaries.

use minijinja::value::{Enumerator, Object, ObjectRepr, Tuple, ValueKind};
use minijinja::{Error, Value};
use std::cmp::Ordering;
use std::sync::Arc;

use super::budget::{Budget, ITEM, refuse};
use super::filters::{Filter, arguments};
use super::ops::{self, Cx};
use super::values::*;

#[rustfmt::skip]
pub(super) const FILTERS: [(&str, Filter); 23] = [
    ("batch", batch), ("count", length), ("dictsort", dictsort), ("first", first), ("groupby", groupby),
    ("items", pairs), ("join", join), ("last", last), ("length", length), ("list", list), ("map", map),
    ("max", |cx, v, a| extreme(cx, v, a, Ordering::Greater)), ("min", |cx, v, a| extreme(cx, v, a, Ordering::Less)),
    ("reject", |cx, v, a| select(cx, v, a, false, false)), ("rejectattr", |cx, v, a| select(cx, v, a, true, false)),
    ("reverse", reverse), ("select", |cx, v, a| select(cx, v, a, false, true)),
    ("selectattr", |cx, v, a| select(cx, v, a, true, true)), ("slice", slice), ("sort", sort), ("sum", sum),
    ("unique", unique), ("bool", |_, v, _| Ok(v.is_true().into())),
];

/// `item.a.b` for the attribute "a.b"; a number is an index.
fn reach(budget: &Budget, item: &Value, attribute: &Value, default: Option<&Value>) -> Made {
    let Some(path) = attribute.as_str() else { return ops::item(budget, item, attribute) };
    let mut found = item.clone();
    for part in path.split('.') {
        budget.take(ITEM)?;
        let key = part.parse::<usize>().map_or_else(|_| Value::from(part), Value::from);
        found = ops::item(budget, &found, &key)?;
        if let Some(default) = default.filter(|_| found.is_undefined()) {
            found = default.clone();
        }
    }
    Ok(found)
}

/// [`reach`] of an attribute, or the item itself where there is none.
fn reach_or(budget: &Budget, item: &Value, attribute: Option<&Value>) -> Made {
    attribute.map_or_else(|| Ok(item.clone()), |attribute| reach(budget, item, attribute, None))
}

/// The key of a comparison: an attribute, texts in lower case.
fn key(budget: &Budget, item: &Value, attribute: &Option<Value>, case_sensitive: bool) -> Made {
    let key = reach_or(budget, item, attribute.as_ref().filter(|a| !a.is_none()))?;
    match key.as_str() {
        Some(text) if !case_sensitive => {
            budget.take(3 * text.len())?;
            Ok(text.to_lowercase().into())
        }
        _ => Ok(key),
    }
}

fn length(cx: &mut Cx, value: &Value, args: Args) -> Made {
    let [] = args.bind("length", [])?;
    if let Some(text) = value.as_str() {
        cx.budget.take(text.len())?;
        return Ok(text.chars().count().into());
    }
    match value.kind() {
        ValueKind::Undefined => Ok(0.into()),
        _ => {
            let len = value.len().filter(|_| is_list(value) || is_dict(value));
            len.map(Value::from)
                .ok_or_else(|| refuse(format!("object of type '{}' has no len()", type_name(value))))
        }
    }
}

fn first(cx: &mut Cx, value: &Value, args: Args) -> Made {
    let [] = args.bind("first", [])?;
    if let Some(generator) = value.downcast_object_ref::<Generator>() {
        return Ok(generator.items().pop_front().unwrap_or_default());
    }
    if is_list(value) {
        return value.get_item_by_index(0).or(Ok(Value::UNDEFINED));
    }
    Ok(items(cx.budget, value)?.into_iter().next().unwrap_or_default())
}

fn last(cx: &mut Cx, value: &Value, args: Args) -> Made {
    let [] = args.bind("last", [])?;
    match type_name(value) {
        "generator" if !is_list(value) => Err(refuse("last: a generator has no last item")),
        "list" | "tuple" => Ok(match value.len() {
            Some(len @ 1..) => value.get_item_by_index(len - 1)?,
            _ => Value::UNDEFINED,
        }),
        _ => Ok(items(cx.budget, value)?.pop().unwrap_or_default()),
    }
}

fn list(cx: &mut Cx, value: &Value, args: Args) -> Made {
    let [] = args.bind("list", [])?;
    items(cx.budget, value).map(Value::from)
}

fn pairs(cx: &mut Cx, value: &Value, args: Args) -> Made {
    let [] = args.bind("items", [])?;
    if value.is_undefined() {
        return Ok(Generator::value(Vec::new()));
    }
    if !is_dict(value) {
        return Err(refuse(format!("items: expected a dict, found {}", type_name(value))));
    }
    let mut made = Vec::new();
    for key in items(cx.budget, value)? {
        let item = value.get_item(&key)?;
        made.push(Tuple::from([key, item]).into());
    }
    Ok(Generator::value(made))
}

fn reverse(cx: &mut Cx, value: &Value, args: Args) -> Made {
    let [] = args.bind("reverse", [])?;
    if let Some(text) = value.as_str() {
        cx.budget.take(text.len())?;
        return Ok(text.chars().rev().collect::<String>().into());
    }
    let mut all = items(cx.budget, value)?;
    all.reverse();
    Ok(Generator::value(all))
}

fn join(cx: &mut Cx, value: &Value, args: Args) -> Made {
    let [separator, attribute] = args.bind("join", ["d", "attribute"])?;
    let separator = separator.map_or(Ok(String::new()), |s| text(cx.budget, &s))?;
    let attribute = given(attribute);
    let mut made = String::new();
    for (i, item) in items(cx.budget, value)?.into_iter().enumerate() {
        let item = reach_or(cx.budget, &item, attribute.as_ref())?;
        cx.budget.take(separator.len())?;
        made.push_str(if i > 0 { &separator } else { "" });
        made.push_str(&text(cx.budget, &item)?);
    }
    Ok(made.into())
}

/// What `map` and `select` see: whatever is false has no items.
fn items_if_true(budget: &Budget, value: &Value) -> Result<Vec<Value>, Error> {
    if value.is_true() { items(budget, value) } else { Ok(Vec::new()) }
}

fn map(cx: &mut Cx, value: &Value, mut args: Args) -> Made {
    let all = items_if_true(cx.budget, value)?;
    let mut made = Vec::with_capacity(all.len());
    if args.by_position.is_empty() {
        let [attribute, default] = args.bind("map", ["attribute", "default"])?;
        let attribute = attribute.ok_or_else(|| refuse("map: expected a filter or an attribute"))?;
        for item in &all {
            made.push(reach(cx.budget, item, &attribute, given(default.clone()).as_ref())?);
        }
    } else {
        let filter = args.by_position.remove(0);
        let filter = str_of(&filter, "map")?;
        for item in &all {
            made.push(cx.state.apply_filter(filter, &arguments(item, &args))?);
        }
    }
    Ok(Generator::value(made))
}

fn select(cx: &mut Cx, value: &Value, mut args: Args, by_attribute: bool, keep: bool) -> Made {
    let attribute = match by_attribute {
        true if args.by_position.is_empty() => return Err(refuse("selectattr: expected an attribute")),
        true => Some(args.by_position.remove(0)),
        false => None,
    };
    let test = if args.by_position.is_empty() { None } else { Some(args.by_position.remove(0)) };
    let test = test.as_ref().map(|t| str_of(t, "select")).transpose()?;
    let mut made = Vec::new();
    for item in items_if_true(cx.budget, value)? {
        let tested = reach_or(cx.budget, &item, attribute.as_ref())?;
        let holds = match test {
            Some(test) => cx.state.perform_test(test, &arguments(&tested, &args))?,
            None => tested.is_true(),
        };
        if holds == keep {
            made.push(item);
        }
    }
    Ok(Generator::value(made))
}

fn extreme(cx: &mut Cx, value: &Value, args: Args, wanted: Ordering) -> Made {
    let [case_sensitive, attribute] = args.bind("min", ["case_sensitive", "attribute"])?;
    let mut best: Option<(Value, Value)> = None;
    for item in items(cx.budget, value)? {
        let key = key(cx.budget, &item, &attribute, flag(&case_sensitive))?;
        match &best {
            Some((_, best)) if order(cx.budget, &key, best)? != wanted => {}
            _ => best = Some((item, key)),
        }
    }
    Ok(best.map_or(Value::UNDEFINED, |(item, _)| item))
}

fn by_keys(
    budget: &Budget,
    keyed: Vec<(Vec<Value>, Value)>,
    reverse: bool,
) -> Result<Vec<(Vec<Value>, Value)>, Error> {
    sorted(keyed, &mut |a, b| {
        for (a, b) in a.0.iter().zip(&b.0) {
            let order = order(budget, a, b)?;
            if order != Ordering::Equal {
                return Ok(if reverse { order.reverse() } else { order });
            }
        }
        Ok(Ordering::Equal)
    })
}

fn sort(cx: &mut Cx, value: &Value, args: Args) -> Made {
    let [reverse, case_sensitive, attribute] =
        args.bind("sort", ["reverse", "case_sensitive", "attribute"])?;
    // Several attributes are separated by commas.
    let attributes: Vec<Option<Value>> = match given(attribute) {
        Some(list) if list.as_str().is_some() => {
            let list = list.as_str().unwrap_or_default();
            cx.budget.take_times(list.len(), ITEM)?;
            list.split(',').map(|a| Some(a.into())).collect()
        }
        one => vec![one],
    };
    let mut keyed = Vec::new();
    for item in items(cx.budget, value)? {
        let mut keys = Vec::new();
        for attribute in &attributes {
            keys.push(key(cx.budget, &item, attribute, flag(&case_sensitive))?);
        }
        cx.budget.take_times(keys.len(), ITEM)?;
        keyed.push((keys, item));
    }
    let sorted = by_keys(cx.budget, keyed, flag(&reverse))?;
    Ok(sorted.into_iter().map(|(_, item)| item).collect())
}

fn dictsort(cx: &mut Cx, value: &Value, args: Args) -> Made {
    let names = ["case_sensitive", "by", "reverse"];
    let [case_sensitive, by, reverse] = args.bind("dictsort", names)?;
    let by_value = match by.as_ref().map(|b| b.as_str()) {
        None | Some(Some("key")) => false,
        Some(Some("value")) => true,
        _ => return Err(refuse("dictsort: by is 'key' or 'value'")),
    };
    if !is_dict(value) {
        return Err(refuse(format!("dictsort: expected a dict, found {}", type_name(value))));
    }
    let mut keyed = Vec::new();
    for name in items(cx.budget, value)? {
        let item = value.get_item(&name)?;
        let by = key(cx.budget, if by_value { &item } else { &name }, &None, flag(&case_sensitive))?;
        keyed.push((vec![by], Tuple::from([name, item]).into()));
    }
    let sorted = by_keys(cx.budget, keyed, flag(&reverse))?;
    Ok(sorted.into_iter().map(|(_, pair)| pair).collect())
}

fn unique(cx: &mut Cx, value: &Value, args: Args) -> Made {
    let [case_sensitive, attribute] = args.bind("unique", ["case_sensitive", "attribute"])?;
    let mut seen: Vec<Value> = Vec::new();
    let mut made = Vec::new();
    for item in items(cx.budget, value)? {
        let key = key(cx.budget, &item, &attribute, flag(&case_sensitive))?;
        cx.budget.take_times(seen.len(), ITEM)?;
        let mut known = false;
        for other in &seen {
            known = known || equal(cx.budget, other, &key)?;
        }
        if !known {
            seen.push(key);
            made.push(item);
        }
    }
    Ok(Generator::value(made))
}

fn sum(cx: &mut Cx, value: &Value, args: Args) -> Made {
    let [attribute, start] = args.bind("sum", ["attribute", "start"])?;
    let attribute = given(attribute);
    let mut total = start.unwrap_or(0.into());
    for item in items(cx.budget, value)? {
        let item = reach_or(cx.budget, &item, attribute.as_ref())?;
        if total.as_str().is_some() {
            return Err(refuse("sum: texts are not summed"));
        }
        total = ops::add(cx.budget, &total, &item)?;
    }
    Ok(total)
}

fn batch(cx: &mut Cx, value: &Value, args: Args) -> Made {
    let [count, fill] = args.bind("batch", ["linecount", "fill_with"])?;
    let count = size_or(&count, 0, "batch")?;
    if count == 0 {
        return Err(refuse("batch: expected a count above 0"));
    }
    let all = items(cx.budget, value)?;
    let mut made = Vec::new();
    for part in all.chunks(count) {
        let mut part = part.to_vec();
        if let Some(fill) = given(fill.clone()) {
            cx.budget.take_times(count - part.len(), ITEM)?;
            part.resize(count, fill);
        }
        made.push(part.into());
    }
    Ok(Generator::value(made))
}

fn slice(cx: &mut Cx, value: &Value, args: Args) -> Made {
    let [count, fill] = args.bind("slice", ["slices", "fill_with"])?;
    let count = size_or(&count, 0, "slice")?;
    if count == 0 {
        return Err(refuse("slice: expected a count above 0"));
    }
    cx.budget.take_times(count, 2 * ITEM)?;
    let all = items(cx.budget, value)?;
    let (each, longer) = (all.len() / count, all.len() % count);
    let mut rest = &all[..];
    let mut made = Vec::new();
    for i in 0..count {
        let (part, after) = rest.split_at(each + usize::from(i < longer));
        rest = after;
        let mut part = part.to_vec();
        part.extend(given(fill.clone()).filter(|_| i >= longer));
        made.push(part.into());
    }
    Ok(Generator::value(made))
}

/// A pair that has names, too.
#[derive(Debug)]
pub(super) struct Group([Value; 2]);

impl Object for Group {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        match key.as_str() {
            Some("grouper") => Some(self.0[0].clone()),
            Some("list") => Some(self.0[1].clone()),
            _ => self.0.get(key.as_usize()?).cloned(),
        }
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(2)
    }
}

fn groupby(cx: &mut Cx, value: &Value, args: Args) -> Made {
    let [attribute, default, case_sensitive] =
        args.bind("groupby", ["attribute", "default", "case_sensitive"])?;
    let attribute = attribute.ok_or_else(|| refuse("groupby: expected an attribute"))?;
    let default = given(default);
    let mut keyed = Vec::new();
    for item in items(cx.budget, value)? {
        let name = reach(cx.budget, &item, &attribute, default.as_ref())?;
        let by = key(cx.budget, &name, &None, flag(&case_sensitive))?;
        keyed.push((vec![by, name], item));
    }
    let sorted = sorted(keyed, &mut |a, b| order(cx.budget, &a.0[0], &b.0[0]))?;
    let mut groups: Vec<(Value, Value, Vec<Value>)> = Vec::new();
    for (keys, item) in sorted {
        cx.budget.take(ITEM)?;
        match groups.last_mut() {
            Some((by, _, group)) if equal(cx.budget, by, &keys[0])? => group.push(item),
            _ => groups.push((keys[0].clone(), keys[1].clone(), vec![item])),
        }
    }
    Ok(groups.into_iter().map(|(_, name, list)| Value::from_object(Group([name, list.into()]))).collect())
}

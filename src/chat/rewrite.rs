//! A template's syntax tree with every operation that can be costly, or that means something else in Python, turned
//! into a call of a function of [`super::ops`]. Their names are no identifiers, so no template can reach them itself.

use minijinja::machinery::ast::{BinOpKind, CallArg, CompareOpKind, Expr, Spanned, Stmt, UnaryOpKind};
use minijinja::machinery::{Span, ast};
use minijinja::{Error, Value};

use super::budget::refuse;
use super::methods::{DICT_METHODS, METHODS};

/// What `{% break %}` would leave.
#[derive(Clone, Copy, PartialEq)]
enum Inside {
    Loop,
    /// A capture or scope within a loop, which the engine would not close.
    Scope,
    Nothing,
}

pub(super) fn template<'a>(tree: &Stmt<'a>) -> Result<Stmt<'a>, Error> {
    stmt(tree, Inside::Nothing)
}

fn body<'a>(list: &[Stmt<'a>], inside: Inside) -> Result<Vec<Stmt<'a>>, Error> {
    list.iter().map(|s| stmt(s, inside)).collect()
}

fn stmt<'a>(tree: &Stmt<'a>, inside: Inside) -> Result<Stmt<'a>, Error> {
    let scope = if inside == Inside::Nothing { Inside::Nothing } else { Inside::Scope };
    let refused = |what: &str| Err(refuse(format!("{what} is not supported")));
    Ok(match tree {
        Stmt::Template(t) => {
            Stmt::Template(Spanned::new(ast::Template { children: body(&t.children, inside)? }, t.span()))
        }
        Stmt::EmitExpr(e) => Stmt::EmitExpr(Spanned::new(ast::EmitExpr { expr: expr(&e.expr) }, e.span())),
        Stmt::EmitRaw(r) => Stmt::EmitRaw(Spanned::new(ast::EmitRaw { raw: r.raw }, r.span())),
        Stmt::ForLoop(f) => {
            let node = ast::ForLoop {
                target: target(&f.target),
                iter: call("for in", vec![expr(&f.iter)], f.iter.span()),
                filter_expr: f.filter_expr.as_ref().map(expr),
                recursive: f.recursive,
                body: body(&f.body, Inside::Loop)?,
                else_body: body(&f.else_body, inside)?,
            };
            Stmt::ForLoop(Spanned::new(node, f.span()))
        }
        Stmt::IfCond(c) => {
            let node = ast::IfCond {
                expr: expr(&c.expr),
                true_body: body(&c.true_body, inside)?,
                false_body: body(&c.false_body, inside)?,
            };
            Stmt::IfCond(Spanned::new(node, c.span()))
        }
        Stmt::WithBlock(w) => {
            let assignments = w.assignments.iter().map(|(to, from)| (target(to), expr(from))).collect();
            let node = ast::WithBlock { assignments, body: body(&w.body, scope)? };
            Stmt::WithBlock(Spanned::new(node, w.span()))
        }
        Stmt::Set(s) => {
            let node = ast::Set { target: target(&s.target), expr: assigned(&s.target, expr(&s.expr)) };
            Stmt::Set(Spanned::new(node, s.span()))
        }
        Stmt::SetBlock(s) => {
            let node = ast::SetBlock {
                target: target(&s.target),
                filter: s.filter.as_ref().map(|filter| assigned(&s.target, expr(filter))),
                body: body(&s.body, scope)?,
            };
            Stmt::SetBlock(Spanned::new(node, s.span()))
        }
        Stmt::FilterBlock(f) => {
            let node = ast::FilterBlock { filter: expr(&f.filter), body: body(&f.body, scope)? };
            Stmt::FilterBlock(Spanned::new(node, f.span()))
        }
        Stmt::Macro(m) => Stmt::Macro(macro_of(m)?),
        Stmt::CallBlock(c) => {
            let callee = ast::Call { expr: callee(&c.call.expr), args: args(&c.call.args) };
            let node = ast::CallBlock {
                call: Spanned::new(callee, c.call.span()),
                macro_decl: macro_of(&c.macro_decl)?,
            };
            Stmt::CallBlock(Spanned::new(node, c.span()))
        }
        Stmt::Continue(_) | Stmt::Break(_) if inside == Inside::Scope => {
            return Err(refuse("break and continue out of a block inside the loop are not supported"));
        }
        Stmt::Continue(c) => Stmt::Continue(Spanned::new(ast::Continue, c.span())),
        Stmt::Break(b) => Stmt::Break(Spanned::new(ast::Break, b.span())),
        // Hugging Face does not have it either.
        Stmt::Do(_) => return refused("{% do %}"),
        Stmt::AutoEscape(_) => return refused("{% autoescape %}"),
        Stmt::Block(_) | Stmt::Extends(_) => return refused("template inheritance"),
        Stmt::Include(_) | Stmt::Import(_) | Stmt::FromImport(_) => return refused("another template"),
    })
}

fn macro_of<'a>(m: &Spanned<ast::Macro<'a>>) -> Result<Spanned<ast::Macro<'a>>, Error> {
    let node = ast::Macro {
        name: m.name,
        args: m.args.iter().map(target).collect(),
        defaults: m.defaults.iter().map(expr).collect(),
        body: body(&m.body, Inside::Nothing)?,
    };
    Ok(Spanned::new(node, m.span()))
}

/// What is assigned to: names, `namespace.name`, and lists of them.
fn target<'a>(e: &Expr<'a>) -> Expr<'a> {
    match e {
        Expr::List(l) => {
            Expr::List(Spanned::new(ast::List { items: l.items.iter().map(target).collect() }, l.span()))
        }
        Expr::GetAttr(g) => {
            Expr::GetAttr(Spanned::new(ast::GetAttr { expr: target(&g.expr), name: g.name }, g.span()))
        }
        other => expr(other),
    }
}

/// What is assigned to a target, judged where a namespace is to hold it.
fn assigned<'a>(to: &Expr<'a>, value: Expr<'a>) -> Expr<'a> {
    let span = value.span();
    if has_attribute(to) { call("ns.x=", vec![value], span) } else { value }
}

fn has_attribute(target: &Expr<'_>) -> bool {
    match target {
        Expr::GetAttr(_) => true,
        Expr::List(l) => l.items.iter().any(has_attribute),
        _ => false,
    }
}

fn call<'a>(function: &'a str, operands: Vec<Expr<'a>>, span: Span) -> Expr<'a> {
    let args = operands.into_iter().map(CallArg::Pos).collect();
    call_with(function, args, span)
}

fn call_with<'a>(function: &'a str, args: Vec<CallArg<'a>>, span: Span) -> Expr<'a> {
    let expr = Expr::Var(Spanned::new(ast::Var { id: function }, span));
    Expr::Call(Spanned::new(ast::Call { expr, args }, span))
}

fn constant<'a>(value: Value, span: Span) -> Expr<'a> {
    Expr::Const(Spanned::new(ast::Const { value }, span))
}

fn args<'a>(list: &[CallArg<'a>]) -> Vec<CallArg<'a>> {
    list.iter()
        .map(|arg| match arg {
            CallArg::Pos(e) => CallArg::Pos(expr(e)),
            CallArg::Kwarg(name, e) => CallArg::Kwarg(name, expr(e)),
            // Unpacking costs what the list holds.
            CallArg::PosSplat(e) => CallArg::PosSplat(call("*args", vec![expr(e)], e.span())),
            CallArg::KwargSplat(e) => CallArg::KwargSplat(call("**kwargs", vec![expr(e)], e.span())),
        })
        .collect()
}

fn callee<'a>(e: &Expr<'a>) -> Expr<'a> {
    match e {
        Expr::GetAttr(g) => {
            Expr::GetAttr(Spanned::new(ast::GetAttr { expr: expr(&g.expr), name: g.name }, g.span()))
        }
        other => expr(other),
    }
}

fn compare(op: CompareOpKind) -> &'static str {
    match op {
        CompareOpKind::Eq => "==",
        CompareOpKind::Ne => "!=",
        CompareOpKind::Lt => "<",
        CompareOpKind::Lte => "<=",
        CompareOpKind::Gt => ">",
        CompareOpKind::Gte => ">=",
        CompareOpKind::In => "in",
        CompareOpKind::NotIn => "not in",
    }
}

fn expr<'a>(e: &Expr<'a>) -> Expr<'a> {
    let span = e.span();
    match e {
        Expr::Var(v) => Expr::Var(Spanned::new(ast::Var { id: v.id }, span)),
        Expr::Const(c) => constant(c.value.clone(), span),
        Expr::Slice(s) => {
            let bound = |e: &Option<Expr<'a>>| e.as_ref().map_or_else(|| constant(().into(), span), expr);
            call("[:]", vec![expr(&s.expr), bound(&s.start), bound(&s.stop), bound(&s.step)], span)
        }
        Expr::UnaryOp(u) => match u.op {
            UnaryOpKind::Not => {
                let node = ast::UnaryOp { op: UnaryOpKind::Not, expr: expr(&u.expr) };
                Expr::UnaryOp(Spanned::new(node, span))
            }
            UnaryOpKind::Neg => call("-x", vec![expr(&u.expr)], span),
        },
        Expr::BinOp(b) => {
            let function = match b.op {
                BinOpKind::ScAnd | BinOpKind::ScOr => {
                    let node = ast::BinOp { op: b.op, left: expr(&b.left), right: expr(&b.right) };
                    return Expr::BinOp(Spanned::new(node, span));
                }
                BinOpKind::Eq => "==",
                BinOpKind::Ne => "!=",
                BinOpKind::Lt => "<",
                BinOpKind::Lte => "<=",
                BinOpKind::Gt => ">",
                BinOpKind::Gte => ">=",
                BinOpKind::In => "in",
                BinOpKind::Add => "+",
                BinOpKind::Sub => "-",
                BinOpKind::Mul => "*",
                BinOpKind::Div => "/",
                BinOpKind::FloorDiv => "//",
                BinOpKind::Rem => "%",
                BinOpKind::Pow => "**",
                BinOpKind::Concat => "~",
            };
            call(function, vec![expr(&b.left), expr(&b.right)], span)
        }
        Expr::Compare(c) => {
            // All operands are evaluated, also behind a comparison that fails; each is evaluated once.
            let mut operands = vec![expr(&c.expr)];
            for op in &c.ops {
                operands.push(constant(compare(op.op).into(), span));
                operands.push(expr(&op.expr));
            }
            call("a<b<c", operands, span)
        }
        Expr::IfExpr(i) => {
            let node = ast::IfExpr {
                test_expr: expr(&i.test_expr),
                true_expr: expr(&i.true_expr),
                false_expr: i.false_expr.as_ref().map(expr),
            };
            Expr::IfExpr(Spanned::new(node, span))
        }
        Expr::Filter(f) => {
            let node = ast::Filter { name: f.name, expr: f.expr.as_ref().map(expr), args: args(&f.args) };
            Expr::Filter(Spanned::new(node, span))
        }
        Expr::Test(t) => {
            let node = ast::Test { name: t.name, expr: expr(&t.expr), args: args(&t.args) };
            Expr::Test(Spanned::new(node, span))
        }
        Expr::GetAttr(g) => match DICT_METHODS.iter().find(|name| name[1..] == *g.name) {
            // Python finds the method of a dictionary before its key.
            Some(_) => call("a.b", vec![expr(&g.expr), constant(g.name.into(), span)], span),
            None => Expr::GetAttr(Spanned::new(ast::GetAttr { expr: expr(&g.expr), name: g.name }, span)),
        },
        Expr::GetItem(g) => call("[i]", vec![expr(&g.expr), expr(&g.subscript_expr)], span),
        Expr::Call(c) => {
            if let Expr::GetAttr(g) = &c.expr
                && let Some(method) = METHODS.iter().find(|name| name[1..] == *g.name)
            {
                let mut all = vec![CallArg::Pos(expr(&g.expr))];
                all.extend(args(&c.args));
                return call_with(method, all, span);
            }
            Expr::Call(Spanned::new(ast::Call { expr: callee(&c.expr), args: args(&c.args) }, span))
        }
        Expr::List(l) => call("[]", l.items.iter().map(expr).collect(), span),
        Expr::Tuple(t) => call("()", t.items.iter().map(expr).collect(), span),
        Expr::Map(m) => {
            let pairs = m.keys.iter().zip(&m.values).flat_map(|(key, value)| [expr(key), expr(value)]);
            call("{}", pairs.collect(), span)
        }
    }
}

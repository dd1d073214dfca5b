//! Pages: one file each, no scripts, nothing loaded from elsewhere.

use minijinja::{Environment, Value};

use crate::error::{Error, Result};

/// A template filled in; `style.css` and `parts.jinja` may be included. An error is a fault of our own template.
pub(crate) fn render(template: &'static str, shown: Value) -> Result<String> {
    let mut env = Environment::new();
    // Names that end in .html.jinja have everything escaped that is not marked safe: samples, names and settings are
    // untrusted.
    let page = env
        .add_template("style.css", include_str!("style.css"))
        .and_then(|()| env.add_template("parts.html.jinja", include_str!("parts.html.jinja")))
        .and_then(|()| env.add_template("page.html.jinja", template))
        .and_then(|()| env.get_template("page.html.jinja")?.render(shown));
    page.map_err(Error::usage)
}

use super::*;

fn template(source: &str) -> Result<ChatTemplate> {
    let tokens = vec![("bos_token".into(), "<s>".into())];
    ChatTemplate::new(source.into(), "chat_template.jinja".into(), tokens)
}

fn render(source: &str) -> Result<String> {
    template(source)?.render(&[Message::new("user", "Hi <b>&'"), Message::new("assistant", "Yo")], false)
}

#[test]
fn qwen3_conversation() {
    let template =
        template(include_str!("../../tests/chat_templates/templates/Qwen-Qwen3-0.6B.jinja")).unwrap();
    let messages = [
        Message::new("system", "You are terse."),
        Message::new("user", "2+2?"),
        Message::new("assistant", "<think>\nTwo and two.\n</think>\n\n4"),
        Message::new("user", "And <3 \"5\"?"),
    ];
    // Thoughts of turns before the last question are dropped.
    let turns = "<|im_start|>system\nYou are terse.<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n\
         <|im_start|>assistant\n4<|im_end|>\n<|im_start|>user\nAnd <3 \"5\"?<|im_end|>\n";
    assert_eq!(template.render(&messages, false).unwrap(), turns);
    let prompt = format!("{turns}<|im_start|>assistant\n");
    assert_eq!(template.render(&messages, true).unwrap(), prompt);
    // An answer to the last question keeps its thoughts.
    let kept = template.render(&messages[1..3], false).unwrap();
    assert_eq!(
        kept,
        "<|im_start|>user\n2+2?<|im_end|>\n\
         <|im_start|>assistant\n<think>\nTwo and two.\n</think>\n\n4<|im_end|>\n"
    );
    // A long conversation stays far from the limits.
    let long: Vec<_> =
        (0..2000).map(|i| Message::new(["user", "assistant"][i % 2], "word ".repeat(200))).collect();
    assert!(template.render(&long, true).unwrap().len() > 2_000_000);
}

#[test]
fn jinja_as_hugging_face_sets_it_up() {
    // trim_blocks and lstrip_blocks; no HTML escapes, in tojson neither.
    let text = "{{ bos_token }}{% for m in messages %}\n  {% if m['role'] == 'user' %}\n[{{ m.content }}]\n  \
                {% endif %}\n{% endfor %}\n{{ messages[0] | tojson }}{{ {'b': [1, 2.5, none]} | tojson(indent=2) }}";
    assert_eq!(
        render(text).unwrap(),
        "<s>[Hi <b>&']\n{\"role\": \"user\", \"content\": \"Hi <b>&'\"}{\n  \"b\": [\n    1,\n    2.5,\n    null\n  ]\n}"
    );
    assert_eq!(render("{{ tools is none }} {{ nothing is defined }}").unwrap(), "True False");
    assert_eq!(render("{{ strftime_now('%Y')|int > 2024 }}").unwrap(), "True");
    let generation = "{%- generation -%} a {%- endgeneration -%}";
    assert_eq!(render(generation).unwrap(), "a");
    let macros = "{% macro turn(m, mark='#') %}{{ mark }}{{ m.role }};{% endmacro %}\
                  {% for m in messages %}{{ turn(m) }}{{ turn(m, mark='+') }}{% endfor %}";
    assert_eq!(render(macros).unwrap(), "#user;+user;#assistant;+assistant;");
    let filters = "{{ messages | map(attribute='role') | join(',') }}|\
                   {{ messages | selectattr('role', 'equalto', 'user') | list | length }}|\
                   {{ (messages | selectattr('role', 'in', ['user', 'x']) | first).content | upper | replace('HI', 'ha') }}";
    assert_eq!(render(filters).unwrap(), "user,assistant|1|ha <B>&'");
    let operators = "{{ 1 + 2.5 * 2 }} {{ 7 % 4 }} {{ [1] + [2] }} {{ 'a' ~ 1 ~ none }} {{ 'abcd'[1:-1] }} \
                     {{ messages[::-1][0].role }} {{ 'z' not in 'ab' }} {{ (1, 2)[1] }} {{ 2 <= 2 and 'a' < 'b' }}";
    assert_eq!(render(operators).unwrap(), "6.0 3 [1, 2] a1None bc assistant True 2 True");
}

#[test]
fn rejected_conversations_and_damaged_templates() {
    let error = render("{{ raise_exception('roles must ' ~ 'alternate') }}").unwrap_err();
    assert!(matches!(error, Error::Usage(_)) && error.to_string().ends_with("roles must alternate"));
    for damaged in [
        "{% if %}",
        "{{ 'a",
        "{% for x in y %}",
        "{% include 'x' %}{% block a %}{% endblock %}",
        // The engine would leave the scope open.
        "{% for i in [1] %}{% with %}{% break %}{% endwith %}{% endfor %}",
        "{% for i in [1] %}{% set x %}{% continue %}{% endset %}{% endfor %}",
        "{% do [].append(1) %}",
    ] {
        assert!(matches!(template(damaged), Err(Error::Input { .. })), "{damaged}");
    }
    for failing in ["{{ nothing.at.all }}", "{{ missing() }}", "{% include 'x' %}", "{{ 1 + 'a' }}"] {
        assert!(matches!(render(failing), Err(Error::Input { .. })), "{failing}");
    }
}

#[test]
fn hostile_templates_end_with_an_error() {
    let doubling = "{% set x = 'ab' %}".to_owned() + &"{% set x = x ~ x %}".repeat(60) + "{{ x|length }}";
    let list = "{% set x = ['ab'] %}".to_owned() + &"{% set x = [x, x] %}".repeat(31) + "{{ x }}";
    let sums = "{% set x = [1] %}".to_owned() + &"{% set x = x + x %}".repeat(60) + "{{ x|length }}";
    let twice =
        "{% macro f(x, n) %}{% if n > 0 %}{{ f(x + x, n - 1) }}{% endif %}{% endmacro %}{{ f('a', 100) }}";
    let captured =
        "{% set x %}aaaaaaaa{% endset %}".to_owned() + &"{% set x %}{{ x }}{{ x }}{% endset %}".repeat(60);
    let replaced = "{% set x = 'a' %}".to_owned() + &"{% set x = x|replace('a', x ~ x) %}".repeat(20);
    let method = "{% set x = 'a' %}".to_owned() + &"{% set x = x.replace('a', x + x) %}".repeat(20);
    let joined = "{% set x = 'ab' %}".to_owned() + &"{% set x = x.join([x, x, x]) %}".repeat(60);
    let chain = format!("{{{{ 1{} }}}}", " + n".repeat(30_000));
    let deep = format!("{{{{ {}1{} }}}}", "[".repeat(5_000), "]".repeat(5_000));
    let elif = format!("{{% if a %}}{}{{% endif %}}", "{%elif a%}".repeat(12_000));
    let text = format!("{{% for i in range(99999) %}}{}{{% endfor %}}", "x".repeat(100_000));
    let slices = "{% set ns = namespace(x=messages) %}{% for i in range(99999) %}{% set ns.x = ns.x[0:] %}{% endfor %}{{ ns.x|length }}";
    let nested =
        "{% set ns = namespace(x=1) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}";
    let cycle = "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns.a == ns }}";
    for hostile in [
        &doubling,
        &list,
        &sums,
        twice,
        &captured,
        &replaced,
        &method,
        &joined,
        &chain,
        &deep,
        &text,
        nested,
        cycle,
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'a' * 999999999 }}",
        "{{ [1] * 99999999 }}",
        "{% set s = 'a' %}{{ s * 9999999 * 9999999 }}",
        "{{ '{:>99999999}'.format(1) }}",
        "{{ '{:.99999999f}'.format(1) }}",
        "{{ '{:{w}}'.format(1, w=99999999) }}",
        "{{ '{:>99999999}'.format('a') }}",
        "{{ '%99999999d' % 1 }}",
        "{{ '%.99999999f' % 1 }}",
        "{{ '%*s' % (99999999, 'a') }}",
        "{{ '%99999999s'|format('a') }}",
        "{{ ('%9999d' * 9999) % ((1,) * 9999) ~ ('%9999d' * 9999) % ((1,) * 9999) ~ ('%9999d' * 9999) % ((1,) * 9999) }}",
        "{{ 'a\nb'|indent(999999999) }}",
        "{{ ('a\n' * 99999)|indent(99999) }}",
        "{{ ('a\n' * 99999)|indent('a' * 99999) }}",
        "{{ [1]|batch(99999999, 'x')|list }}",
        "{{ [1]|slice(99999999)|list }}",
        "{{ range(99999)|unique|list }}",
        "{% for i in range(9999) %}{% set x = range(9999)|list|sort(reverse=true) %}{% endfor %}",
        "{% for i in range(9999) %}{% set x = range(9999)|groupby('x') %}{% endfor %}",
        "{% for i in range(9999) %}{% set x = range(9999)|map('string')|select('in', 'abc')|list %}{% endfor %}",
        "{{ range(9999)|map('list')|list }}",
        "{{ 'a'|center(999999999) }}",
        "{{ 'a'.center(999999999) }}{{ 'a'.ljust(999999999) }}",
        "{{ '1'.zfill(999999999) }}",
        "{{ ('a' * 99999)|truncate(10, end='b' * 999999999) }}",
        "{{ ('ab' * 999999).split('') }}",
        "{{ ('a ' * 9999999).split() }}",
        "{{ ('a' * 9999999)|list }}",
        "{{ ('a' * 9999).replace('', 'b' * 99999) }}",
        "{{ ('a' * 9999).join(range(99999)|map('string')) }}",
        "{% for i in range(9999) %}{% set x = ('a' * 99999).strip('b' * 99999) %}{% endfor %}",
        "{{ [[1] * 9999] | tojson(indent=99999) }}",
        "{{ ([1] * 99999) | tojson(separators=('a' * 9999, ':')) }}",
        "{{ ([[1]] * 99999)|sum(start=[]) }}",
        "{% macro f() %}{% endmacro %}{% set x = range(99999)|list %}{% for i in range(99999) %}{{ f(*x) }}{% endfor %}",
        "{% set a = [range(9999)|list] %}{% set b = [range(9999)|list] %}\
         {% for i in range(99999) %}{{ loop.changed(a if i % 2 else b) }}{% endfor %}",
        "{% set a = [range(9999)|list] %}{% set b = [range(9999)|list] %}\
         {% for i in range(99999) %}{% if a == b <= a %}{% endif %}{% endfor %}",
        "{% for i in range(1) %}{{ loop.cycle() }}{% endfor %}",
        "{{ 2 ** 99999 ** 99999 * [1] }}",
        "{% set ns = namespace() %}{% set ns.a = [ns] %}{{ ns in ns.a }}",
        "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}",
        "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns | tojson }}",
        // Circles are never freed, and to walk through one of generators would wait for itself.
        "{% set ns = namespace() %}{% set ns.a = [ns] %}{{ 1 in ns.a }}",
        "{% set ns = namespace() %}{% set ns.a = [ns]|reverse %}{{ ns.a }}",
        "{% set ns = namespace() %}{% set x, ns.a = (1, [ns]) %}",
        "{% set ns = namespace() %}{% set ns.a | default(ns, true) %}{% endset %}",
        "{% set ns = namespace() %}{% set d = {'a': ns} %}{% set ns.a = d.items %}",
        "{% for i in range(2) %}{{ loop.changed(loop) }}{% endfor %}",
        "{{ raise_exception(['x' * 1000000] * 999) }}",
        // To read a long text takes as long as to make one.
        "{% set s = 'x' * 9999999 %}{% for i in range(99999) %}{% set n = s|length %}{% endfor %}",
        "{% set s = 'x' * 9999999 %}{% for i in range(99999) %}{% set n = s|int %}{% endfor %}",
        "{% set s = 'x' * 9999999 %}{% for i in range(99999) %}{% set n = s|float %}{% endfor %}",
        "{% set s = 'x' * 9999999 %}{% for i in range(99999) %}{% set n = 'a'.find(s) %}{% endfor %}",
        "{% set s = 'x' * 9999999 %}{% for i in range(99999) %}{% set n = 'a'|truncate(99999999, end=s) %}{% endfor %}",
        "{% set s = 'x' * 9999999 %}{% for i in range(99999) %}{% set n = 1|tojson(indent=s) %}{% endfor %}",
        "{% set d = {'x' * 9999999: 1} %}{% for i in range(99999) %}{% set n = ''.format(**d) %}{% endfor %}",
        "{% set d = {'x' * 9999999: 1} %}{% for i in range(99999) %}{% set n = ''.format_map(d) %}{% endfor %}",
        "{% set s = '%' ~ '0' * 9999999 ~ 'd' %}{% for i in range(99999) %}{% set n = s % 1 %}{% endfor %}",
        "{{ ('x' * 9999999).startswith(('x' * 9999998 ~ 'y',) * 999) }}",
        "{{ range(99)|map(attribute='.' * 9999999, default=1)|list }}",
        "{{ [1]|sort(attribute=',' * 9999999) }}",
    ] {
        let head = &hostile[..hostile.len().min(60)];
        assert!(matches!(render(hostile), Err(Error::Input { .. })), "{head}");
    }
    // Long, but harmless.
    let held = "{% set d = {'a': 'x' * 1000000} %}{% for i in range(999) %}{{ d.items }}{% endfor %}";
    assert_eq!(render(held).unwrap(), "<object>".repeat(999));
    let joiner =
        "{% set j = joiner('x' * 9999999) %}{% for i in range(99999) %}{% set x = j() %}{% endfor %}";
    assert_eq!(render(joiner).unwrap(), "");
    assert_eq!(render("{{ 1 ** 2 ** 99999 ** 99999 ** 9999 * [1] }}").unwrap(), "[1]");
    assert_eq!(render(slices).unwrap(), "2");
    assert_eq!(render(&elif).unwrap(), "");
}

/// As in Jinja, where operators are no variables.
#[test]
fn variables_hide_no_operators() {
    let names = ["==", "in", "for in", "a<b<c", "[i]", ".upper", "x"];
    let variables = names.map(|name| (name.to_string(), Json::from(name))).into_iter().collect();
    let source = "{% for m in messages %}{{ m['role'].upper() == 'USER' }} {{ 1 < m.n < 3 }} {{ 'a' in m.role }} {{ x }}{% endfor %}";
    let options = RenderOptions { variables, ..RenderOptions::default() };
    let message = serde_json::json!({ "role": "user", "n": 2 });
    assert_eq!(template(source).unwrap().render(&[message], options).unwrap(), "True True False x");
}

/// Small templates whose results `tests/chat_templates/make.py` got from transformers' renderer; null is an error.
#[test]
fn expressions_mean_what_they_mean_in_jinja() {
    let file: Json =
        serde_json::from_str(include_str!("../../tests/chat_templates/expressions.json")).unwrap();
    let tokens: Vec<(String, String)> = [("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")]
        .map(|(name, text)| (name.into(), text.into()))
        .into();
    let cases = file["cases"].as_array().unwrap();
    assert!(cases.len() > 800);
    let mut different = Vec::new();
    for case in cases {
        let (source, wanted) = (case[0].as_str().unwrap(), case[1].as_str());
        let options = RenderOptions {
            variables: file["variables"].as_object().unwrap().clone(),
            now: Some(1_721_984_703),
            ..RenderOptions::default()
        };
        let made = ChatTemplate::new(source.into(), "expression".into(), tokens.clone())
            .and_then(|template| template.render(file["messages"].as_array().unwrap(), options));
        if made.as_ref().ok().map(String::as_str) != wanted {
            different.push(format!("{source}\n  wanted {wanted:?}\n  made   {made:?}"));
        }
    }
    assert!(different.is_empty(), "{} differ:\n{}", different.len(), different.join("\n"));
}

/// Which file a template and its tokens come from is the tokenizer's matter (tests/text/tokenizer.rs).
#[test]
fn a_template_comes_with_its_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    Tokenizer::bytes().save(dir.path()).unwrap();
    let tokenizer = || Tokenizer::at(dir.path()).unwrap();
    let shown = |template: ChatTemplate| template.render::<Message>(&[], false).unwrap();
    assert!(ChatTemplate::of(&tokenizer()).unwrap().is_none());
    write("special_tokens_map.json", r#"{"bos_token": "!"}"#);
    write("tokenizer_config.json", r#"{"chat_template": "A{{ bos_token }}{{ eos_token }}"}"#);
    assert_eq!(shown(ChatTemplate::of(&tokenizer()).unwrap().unwrap()), "A!");
    write("other.jinja", "O{{ bos_token }}");
    assert_eq!(shown(ChatTemplate::from_file(&dir.path().join("other.jinja"), &tokenizer()).unwrap()), "O!");
    write("chat_template.jinja", "{% if");
    assert!(ChatTemplate::of(&tokenizer()).unwrap_err().to_string().contains("chat_template.jinja"));
}

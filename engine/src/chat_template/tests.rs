//! Tests of chat templates.

use super::*;

fn message(role: Role, content: &str) -> Message {
    Message {
        role,
        content: content.to_owned(),
    }
}

fn user(content: &str) -> Vec<Message> {
    vec![message(Role::User, content)]
}

/// Renders one user message by a template, with `<s>` and `</s>` as special tokens.
fn render(source: &str) -> Result<String> {
    let mut template = ChatTemplate::compile(source, "under test")?;
    template.special = vec![("bos_token", "<s>".to_owned()), ("eos_token", "</s>".to_owned())];
    template.render(&user(" Hi "), true)
}

fn rendered(source: &str) -> String {
    render(source).unwrap()
}

#[test]
fn templates_of_real_models_render() {
    let llama3 = "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = \
        '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}\
        {% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}\
        {% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}";
    assert_eq!(
        rendered(llama3),
        "<s><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    );
    let gemma = "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}\
        {% endif %}{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}\
        {% else %}{% set role = message['role'] %}{% endif %}\
        {{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}\
        {% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}";
    assert_eq!(
        rendered(gemma),
        "<s><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n"
    );
    let template = ChatTemplate::compile(gemma, "gemma").unwrap();
    let refused = template
        .render(&[message(Role::System, "x")], false)
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("gemma") && refused.contains("System role not supported"),
        "{refused}"
    );
    let mistral = "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
        {{ raise_exception('roles must alternate') }}{% endif %}{% if message['role'] == 'user' %}\
        {{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}";
    assert_eq!(rendered(mistral), "<s>[INST]  Hi  [/INST]");
}

#[test]
fn whitespace_is_trimmed_as_transformers_does() {
    assert_eq!(rendered("a\n  {% if true %}\nb\n  {% endif %}\nc\n"), "a\nb\nc");
    assert_eq!(rendered("{%- set x = 1 -%}\n a {{- x }}"), "a1");
}

#[test]
fn generation_tags_render_nothing() {
    let tagged =
        "{% for m in messages %}\n{% generation %}\n{{ m.content }}|\n{%- endgeneration -%}\n{% endfor %}";
    assert_eq!(rendered(tagged), " Hi |");
    assert_eq!(rendered("{% raw %}{% x {% endraw %}"), "{% x ");
}

#[test]
fn loops_break_and_namespaces_keep() {
    let source = "{% set ns = namespace(n=0) %}{% for i in range(10) %}{% if i == 3 %}{% break %}{% endif %}\
        {% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}{{ messages[::-1][0].role }}{{ messages[-1:]|length }}";
    assert_eq!(rendered(source), "3user1");
}

#[test]
fn methods_of_python_are_known() {
    for (expression, expected) in [
        ("' a '.strip()", "a"),
        ("'xxaxx'.strip('x')", "a"),
        ("' a '.lstrip() ~ '|'", "a |"),
        ("' a '.rstrip() ~ '|'", " a|"),
        ("'a\\n\\n'.rstrip('\\n')", "a"),
        ("'abc'.startswith('ab')", "True"),
        ("'abc'.endswith(('x', 'c'))", "True"),
        ("'a,b,c'.split(',')[-1]", "c"),
        ("'a,b,c'.split(',', 1)[-1]", "b,c"),
        ("'a,b,c'.rsplit(',', 1)[0]", "a,b"),
        ("'  a  b '.split() | join('|')", "a|b"),
        ("'a b c'.split(none, 1)[1]", "b c"),
        ("'a b c'.rsplit(none, 1)[0]", "a b"),
        ("'aXbX'.replace('X', '-')", "a-b-"),
        ("'aXbX'.replace('X', '-', 1)", "a-bX"),
        ("'äbc'.find('c')", "2"),
        ("'abc'.find('x')", "-1"),
        ("'abab'.count('a')", "2"),
        ("', '.join(['a', 'b'])", "a, b"),
        (
            "'Ab'.upper() ~ 'Ab'.lower() ~ 'ab cd'.title() ~ 'aB'.capitalize()",
            "ABabAb CdAb",
        ),
        ("'12'.isdigit()", "True"),
        ("'a\\nb'.splitlines()[1]", "b"),
        (
            "messages[0].get('role') ~ messages[0].get('x', 'y') ~ (messages[0].get('x') is none)",
            "useryTrue",
        ),
        ("messages[0].keys() | list | length", "2"),
        ("messages[0].items() | map('first') | join(',')", "role,content"),
        ("messages[0].values() | list | first", "user"),
    ] {
        assert_eq!(
            rendered(&format!("{{{{ {expression} }}}}")),
            expected,
            "{expression}"
        );
    }
    let unknown = render("{{ 'a'.zfill(3) }}").unwrap_err().to_string();
    assert!(unknown.contains("zfill"), "{unknown}");
}

#[test]
fn tojson_writes_as_python_does() {
    for (expression, expected) in [
        (
            "{'b': [1, 2.5, true, none], 'a': '<é\"\\n>'} | tojson",
            r#"{"a": "<é\"\n>", "b": [1, 2.5, true, null]}"#,
        ),
        (
            "['é', '🙂'] | tojson(ensure_ascii=true)",
            r#"["\u00e9", "\ud83d\ude42"]"#,
        ),
        (
            "{'a': [1, []], 'b': {}} | tojson(indent=2)",
            "{\n  \"a\": [\n    1,\n    []\n  ],\n  \"b\": {}\n}",
        ),
        ("{'a': [1, 2]} | tojson(separators=(',', ':'))", r#"{"a":[1,2]}"#),
        (
            "messages[0] | tojson(sort_keys=true)",
            r#"{"content": " Hi ", "role": "user"}"#,
        ),
    ] {
        assert_eq!(
            rendered(&format!("{{{{ {expression} }}}}")),
            expected,
            "{expression}"
        );
    }
    assert!(render("{{ 1 | tojson(colour=1) }}").is_err());
}

#[test]
fn the_date_is_always_the_same() {
    // What Python's `datetime(2024, 7, 26).strftime` writes.
    for (format, expected) in [
        ("%d %b %Y", "26 Jul 2024"),
        ("%Y-%m-%d", "2024-07-26"),
        ("%B %d, %Y", "July 26, 2024"),
        ("%A, %H:%M:%S", "Friday, 00:00:00"),
        ("%a %j %y", "Fri 208 24"),
    ] {
        assert_eq!(rendered(&format!("{{{{ strftime_now('{format}') }}}}")), expected);
    }
    assert!(render("{{ strftime_now('%') }}").is_err());
}

#[test]
fn what_is_not_given_is_none_and_messages_keep_their_order() {
    let source = "{{ tools is defined }} {{ tools is none }} {{ documents is none }} {{ messages[0] | tojson }} \
        {% for key in messages[0] %}{{ key }} {% endfor %}{{ messages[0] is mapping }} {{ 'role' in messages[0] }}";
    assert_eq!(
        rendered(source),
        r#"True True True {"role": "user", "content": " Hi "} role content True True"#
    );
}

#[test]
fn hostile_templates_end() {
    let endless = "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}";
    let error = render(endless).unwrap_err().to_string();
    assert!(error.contains("fuel"), "{error}");
    let long = "{% for a in range(999) %}{{ 'x' * 99999 }}{% endfor %}";
    let error = render(long).unwrap_err().to_string();
    assert!(error.contains("bytes of output"), "{error}");
    let deep = "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}";
    assert!(render(deep).is_err());
    let nested = format!(
        "{}1{}",
        "{{ ".to_owned() + &"(".repeat(50_000),
        ")".repeat(50_000) + " }}"
    );
    assert!(matches!(render(&nested), Err(Error::TemplateSyntax { .. })));
    assert!(matches!(render("{% if %}"), Err(Error::TemplateSyntax { .. })));
    assert!(matches!(
        render(&"x".repeat(2 << 20)),
        Err(Error::TemplateSyntax { .. })
    ));
    assert!(render("{% include 'other' %}").is_err());
}

#[test]
fn filters_that_make_much_of_little_are_bounded() {
    let big = "{% set big = 'x' * 9999999 %}";
    for expression in [
        "'a\nb' | indent(9223372036854775808)",
        "'a\nb' | indent(width=1099511627776)",
        "'%99999999d' | format(1)",
        "'%.99999999f' | format(1)",
        "'%s%s%s' | format(big, big, big)",
        "[big, big, big] | join",
        "[1, 2, 3] | join(big)",
        "big.join([1, 2, 3])",
        "[[big], [big]] | join(',')",
        "'aaaa' | replace('a', big)",
        "'aaaa'.replace('a', big)",
        "[1] | batch(1099511627776, 0)",
        "[1] | slice(1099511627776)",
    ] {
        let error = render(&format!("{big}{{{{ {expression} }}}}")).unwrap_err();
        assert!(
            matches!(error, Error::TemplateRender { .. }),
            "{expression}: {error}"
        );
    }
    for (expression, expected) in [
        ("'a\nb' | indent", "a\n    b"),
        ("'a\nb' | indent(2, true)", "  a\n  b"),
        ("'a\nb' | indent(width=1)", "a\n b"),
        ("'%s is %03d' | format('x', 7)", "x is 007"),
        ("'%(a)s' | format(a='y')", "y"),
        ("[1, 'b', none] | join(', ')", "1, b, None"),
        ("messages | join('|', attribute='role')", "user"),
        ("messages | map(attribute='role') | join", "user"),
        ("'abab' | replace('a', 'cc')", "ccbccb"),
        ("[1, 2, 3] | batch(2, 0) | list | length", "2"),
    ] {
        assert_eq!(
            rendered(&format!("{{{{ {expression} }}}}")),
            expected,
            "{expression}"
        );
    }
}

#[test]
fn a_directory_holds_a_template_in_one_of_two_places() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let open = |legacy: serde_json::Value| ChatTemplate::open(at, Some(&legacy));
    let first = |legacy| open(legacy).unwrap().unwrap().render(&[], false).unwrap();
    assert!(ChatTemplate::open(at, None).unwrap().is_none());
    assert!(open(serde_json::Value::Null).unwrap().is_none());
    assert_eq!(first("plain".into()), "plain");
    let named =
        serde_json::json!([{ "name": "tool_use", "template": "t" }, { "name": "default", "template": "d" }]);
    assert_eq!(first(named), "d");
    assert!(open(serde_json::json!([{ "name": "rag", "template": "r" }])).is_err());
    assert!(open(serde_json::json!(3)).is_err());
    std::fs::write(at.join("chat_template.jinja"), "newer").unwrap();
    assert_eq!(first("plain".into()), "newer");
}

//! Templates: a conversation becomes the text that a model was made for.

use crate::{
    date::Date,
    error::Error,
    jinja::Jinja,
    record::{Content, Conversation, Message, Role},
    tokenizer::{TEMPLATE_BYTES, Tokenizer},
};
use std::ops::Range;

/// How a prompt is written out for a model.
#[derive(Clone, Debug)]
pub struct Template {
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Plain { before: String, after: String, gap: bool },
    Chat { jinja: Jinja, source: String },
}

const PLACEHOLDER: &str = "{prompt}";

impl Template {
    /// A template for base models, `"User: {prompt}\nAssistant:"`, written in the configuration.
    ///
    /// The prompt stands where `{prompt}` does. Earlier turns of a conversation are written the
    /// same way, one after the other with a newline between; a system message stands before them
    /// with an empty line after it. When the text ends without white space, completions begin with a
    /// space, as words do in byte-level vocabularies (\[SF\] does the same).
    ///
    /// # Errors
    /// [`Error::Template`] unless `{prompt}` occurs exactly once and no other `{name}` does.
    pub fn plain(text: &str) -> Result<Template, Error> {
        let mut parts = text.split(PLACEHOLDER);
        let (before, after) = match (parts.next(), parts.next(), parts.next()) {
            (Some(before), Some(after), None) => (before, after),
            _ => {
                return Err(Error::template(
                    "plain template",
                    "`template` must hold `{prompt}` exactly once; correct it",
                ));
            }
        };
        if let Some(name) = [before, after].into_iter().find_map(placeholder) {
            let problem = format!("`template` names `{{{name}}}`, and only `{{prompt}}` is known; correct it");
            return Err(Error::template("plain template", problem));
        }
        let gap = !after.is_empty() && !after.ends_with(char::is_whitespace);
        Ok(Template { kind: Kind::Plain { before: before.to_owned(), after: after.to_owned(), gap } })
    }

    /// A Jinja chat template, as found in `tokenizer_config.json` and GGUF files, rendered byte for byte as
    /// transformers renders it. The tokenizer's special tokens are defined under the names that its files give
    /// them, as `bos_token`; `tools` and `documents` are none. `strftime_now` tells [`Date::default`], or the
    /// day of [`Template::with_date`], since a rendering must not depend on the clock.
    ///
    /// A template is somebody's program, so the steps that it takes, its nesting and the text that it writes
    /// are limited.
    ///
    /// # Errors
    /// [`Error::Template`] when it does not compile, or cannot render a one-line conversation.
    pub fn chat(source: &str, tokenizer: &Tokenizer) -> Result<Template, Error> {
        let place = format!("{}: chat template", tokenizer.place());
        if source.len() > TEMPLATE_BYTES {
            let problem = format!("more than {TEMPLATE_BYTES} bytes; name another template");
            return Err(Error::template(place, problem));
        }
        let jinja = Jinja::compile(&place, source, tokenizer.specials())?;
        let template = Template { kind: Kind::Chat { jinja, source: source.to_owned() } };
        let probe = "Will this be said?";
        let rendered = template.render_prompt(&Content::Text(probe.to_owned()).conversation())?;
        if !rendered.contains(probe) {
            return Err(Error::template(place, "it drops what the user says; name another template"));
        }
        Ok(template)
    }

    /// The same template with another day for those that write today's date.
    pub fn with_date(self, date: Date) -> Template {
        match self.kind {
            Kind::Chat { jinja, source } => Template { kind: Kind::Chat { jinja: jinja.with_date(date), source } },
            Kind::Plain { .. } => self,
        }
    }

    /// The day that it is told, if it asks for one.
    pub fn date(&self) -> Option<Date> {
        match &self.kind {
            Kind::Chat { jinja, source } => source.contains("strftime_now").then(|| jinja.date()),
            Kind::Plain { .. } => None,
        }
    }

    /// The chat template that came with the tokenizer, if one did, told the day that stands beside it.
    ///
    /// # Errors
    /// As for [`Template::chat`].
    pub fn of(tokenizer: &Tokenizer) -> Result<Option<Template>, Error> {
        let Some(source) = tokenizer.chat_template() else { return Ok(None) };
        Ok(Some(Template::chat(source, tokenizer)?.with_date(tokenizer.date().unwrap_or_default())))
    }

    /// The text before the completion. The conversation ends with the user, as readers ensure.
    ///
    /// # Errors
    /// [`Error::Template`] when the template refuses the conversation or runs too long.
    pub fn render_prompt(&self, conversation: &Conversation) -> Result<String, Error> {
        self.render(conversation, true)
    }

    /// The text of a conversation whose last message is the model's reply, with what follows one.
    ///
    /// # Errors
    /// As for [`Template::render_prompt`].
    pub fn render_whole(&self, conversation: &Conversation) -> Result<String, Error> {
        self.render(conversation, false)
    }

    /// It as a Jinja chat template: its own text, or what renders as a plain template does, begins with BOS
    /// where `tokenizer` puts one before texts, and ends the last reply with EOS.
    pub(crate) fn source(&self, tokenizer: &Tokenizer) -> String {
        match &self.kind {
            Kind::Chat { source, .. } => source.clone(),
            Kind::Plain { before, after, gap } => {
                let bos = tokenizer.prepended().map(|bos| tokenizer.name_of(Some(bos)));
                // A template that spells it before each prompt lacks it before another first message.
                let begins = bos.map(|bos| match before.starts_with(&bos) {
                    true => "loop.first and message['role'] != 'user'",
                    false => "loop.first",
                });
                as_jinja(before, after, *gap, begins)
            }
        }
    }

    /// The text of a whole conversation, and the spans of it, in bytes, that the template marks with
    /// `{% generation %}`.
    ///
    /// # Errors
    /// As for [`Template::render_prompt`]; the template marks nothing.
    pub(crate) fn render_marked(&self, conversation: &Conversation) -> Result<(String, Vec<Range<usize>>), Error> {
        const NEXT: &str = "marks nothing with `{% generation %}`; set `model.loss` to `last` or `all`";
        match &self.kind {
            Kind::Plain { .. } => Err(Error::template("plain template", NEXT)),
            Kind::Chat { jinja, .. } => {
                let rendered = jinja.render(&conversation.messages, false)?;
                if rendered.generated.is_empty() {
                    return Err(Error::template(&jinja.place, NEXT));
                }
                Ok((rendered.text, rendered.generated))
            }
        }
    }

    /// Whether it writes special tokens itself, BOS among them. A plain template is text alone.
    pub(crate) fn writes_marks(&self) -> bool {
        matches!(self.kind, Kind::Chat { .. })
    }

    fn render(&self, conversation: &Conversation, generation_prompt: bool) -> Result<String, Error> {
        match &self.kind {
            Kind::Plain { before, after, gap } => Ok(plain(&conversation.messages, before, after, *gap)),
            Kind::Chat { jinja, .. } => Ok(jinja.render(&conversation.messages, generation_prompt)?.text),
        }
    }
}

/// The first `{name}` in a text.
fn placeholder(text: &str) -> Option<&str> {
    let name = |rest: &'_ str| rest.split_once('}').map(|(name, _)| name.len());
    text.match_indices('{').find_map(|(at, _)| {
        let found = &text[at + 1..at + 1 + name(&text[at + 1..])?];
        let word = !found.is_empty() && found.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        word.then_some(found)
    })
}

fn plain(messages: &[Message], before: &str, after: &str, gap: bool) -> String {
    let mut text = String::new();
    for message in messages {
        match message.role {
            Role::System | Role::Other(_) => text.extend([message.content.as_str(), "\n\n"]),
            Role::User => text.extend([before, &message.content, after]),
            Role::Assistant => text.extend([reply(&message.content, gap).as_str(), "\n"]),
        }
    }
    text
}

/// A plain template as Jinja. BOS stands before a message where `begins`, an expression, holds.
fn as_jinja(before: &str, after: &str, gap: bool, begins: Option<&str>) -> String {
    let bos = begins.map(|begins| format!("{{% if {begins} %}}{{{{ bos_token }}}}{{% endif %}}")).unwrap_or_default();
    let said = "message['content']";
    let reply = match gap {
        true => format!("{{% if {said}.lstrip() %}}{{{{ ' ' + {said}.lstrip() }}}}{{% endif %}}"),
        false => format!("{{{{ {said} }}}}"),
    };
    format!(
        "{{% for message in messages %}}{bos}{{% if message['role'] == 'user' %}}{{{{ {} + {said} + {} }}}}\
         {{% elif message['role'] == 'assistant' %}}{reply}{{{{ eos_token if loop.last else '\\n' }}}}\
         {{% else %}}{{{{ {said} + '\\n\\n' }}}}{{% endif %}}{{% endfor %}}",
        quoted(before),
        quoted(after)
    )
}

/// A text as a literal of Jinja.
fn quoted(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('\'', "\\'").replace('\n', "\\n").replace('\r', "\\r");
    format!("'{escaped}'")
}

/// A reply behind the space that the template wants before it.
fn reply(content: &str, gap: bool) -> String {
    match content.trim_start() {
        words if gap && !words.is_empty() => format!(" {words}"),
        _ if gap => String::new(),
        _ => content.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpe::train_bpe;

    fn tokenizer() -> Tokenizer {
        train_bpe(["ab ab"], 256 + 3, &["<|im_end|>", "<|begin_of_text|>"]).unwrap()
    }

    fn talk(turns: &[(Role, &str)]) -> Conversation {
        Conversation { messages: turns.iter().map(|(role, text)| Message::new(role.clone(), *text)).collect() }
    }

    #[track_caller]
    fn check(template: &str, turns: &[(Role, &str)], want: &str) {
        let template = Template::chat(template, &tokenizer()).unwrap();
        assert_eq!(template.render_prompt(&talk(turns)).unwrap(), want);
    }

    #[track_caller]
    fn check_refused(template: &str, turns: &[(Role, &str)], want: &str) {
        let rendered = Template::chat(template, &tokenizer()).and_then(|t| t.render_prompt(&talk(turns)));
        let message = rendered.unwrap_err().to_string();
        assert!(message.contains(want), "{message}");
    }

    #[track_caller]
    fn check_plain(template: &str, turns: &[(Role, &str)], want: &str, completion: &str) {
        let template = Template::plain(template).unwrap();
        assert_eq!(template.render_prompt(&talk(turns)).unwrap(), want);
        let answered = [turns, &[(Assistant, "Yes.")]].concat();
        assert_eq!(template.render_whole(&talk(&answered)).unwrap(), format!("{want}{completion}\n"));
    }

    use Role::{Assistant, System, User};

    /// In the manner of SmolLM2's.
    const CHATML: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
        {{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + \
        message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}\
        {{ '<|im_start|>assistant\n' }}{% endif %}";

    #[test]
    fn chatml_renders_turns_and_its_default_system() {
        let one = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n";
        check(CHATML, &[(User, "Hi")], one);
        let three = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nA & <B><|im_end|>\n\
            <|im_start|>assistant\nC<|im_end|>\n<|im_start|>user\nD<|im_end|>\n<|im_start|>assistant\n";
        check(CHATML, &[(System, "S"), (User, "A & <B>"), (Assistant, "C"), (User, "D")], three);
    }

    /// In the manner of Llama 3's, with blocks on lines of their own and Python's methods.
    const LLAMA: &str = "{%- if strftime_now is defined %}\n    {%- set date = strftime_now('%d') %}\n{%- else %}\n    \
        {%- set date = '26 Jul 2024' %}\n{%- endif %}\n{{- bos_token }}\n{%- if messages[0]['role'] == 'system' %}\n    \
        {%- set system = messages[0]['content'].strip() %}\n    {%- set messages = messages[1:] %}\n{%- else %}\n    \
        {%- set system = '' %}\n{%- endif %}\n{{- 'system: ' + date + '|' + system + '<|eot_id|>' }}\n\
        {%- for message in messages %}\n    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\n        \
        {{- raise_exception('Roles must alternate!') }}\n    {%- endif %}\n    \
        {{- message.get('role').upper() + ': ' + message['content'] | trim + '<|eot_id|>' }}\n{%- endfor %}\n\
        {%- if add_generation_prompt %}\n    {{- 'assistant: ' }}\n{%- endif %}\n";

    #[test]
    fn a_llama_style_template_is_told_a_day_and_uses_pythons_methods() {
        let want = "<|begin_of_text|>system: 26|S<|eot_id|>USER: A<|eot_id|>assistant: ";
        let tokenizer = tokenizer();
        let bos = tokenizer.name_of(tokenizer.id("<|begin_of_text|>"));
        let named = LLAMA.replace("{{- bos_token }}", &format!("{{{{- '{bos}' }}}}"));
        check(&named, &[(System, " S "), (User, " A ")], want);
        let template = Template::chat(&named, &tokenizer).unwrap().with_date("2026-01-05".parse().unwrap());
        let dated = template.render_prompt(&talk(&[(System, "S"), (User, "A")])).unwrap();
        assert_eq!(dated, want.replace(": 26|", ": 05|"));
        check("{{ messages[0].content.split(' ')[1] }}|{{ messages[-1]['content'] }}", &[(User, "x y z")], "y|x y z");
        check(
            "{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}{{ messages[0].content.startswith('x') }}",
            &[(User, "x")],
            "role=user;content=x;True",
        );
    }

    #[test]
    fn json_is_spaced_as_python_does() {
        check("{{ messages | tojson }}", &[(User, "a <b>")], r#"[{"role": "user", "content": "a <b>"}]"#);
    }

    #[test]
    fn a_template_may_refuse_and_must_not_run_away() {
        check_refused(LLAMA, &[(User, "A"), (User, "B")], "Roles must alternate!");
        check_refused("{% for", &[], "; correct it, or name another template");
        check_refused("{{ messages | length }}", &[], "drops what the user says");
        check_refused("{{ strftime_now('%Q') }}{{ messages[0].content }}", &[], "writes the date with `%Q`");
        check_refused(
            "{% for i in range(9999) %}{% for i in range(9999) %}{{ i }}{% endfor %}{% endfor %}",
            &[],
            "runs too long",
        );
        check_refused("{{ messages[0]['content'].frobnicate() }}", &[], "frobnicate");
    }

    #[test]
    fn plain_templates_write_all_turns_alike() {
        check_plain("User: {prompt}\nAssistant:", &[(User, "Hi")], "User: Hi\nAssistant:", " Yes.");
        check_plain("{prompt}\n\n", &[(System, "S"), (User, "Hi")], "S\n\nHi\n\n", "Yes.");
        check_plain("{prompt}", &[(User, "Hi")], "Hi", "Yes.");
        let turns = [(User, "A"), (Assistant, "B"), (User, "C {prompt}")];
        check_plain("Q: {prompt}\nA:", &turns, "Q: A\nA: B\nQ: C {prompt}\nA:", " Yes.");
    }

    #[test]
    fn plain_templates_are_checked() {
        for (text, want) in [
            ("no place", "exactly once"),
            ("{prompt} {prompt}", "exactly once"),
            ("{instruction}: {prompt}", "`{instruction}`"),
        ] {
            let message = Template::plain(text).unwrap_err().to_string();
            assert!(message.contains(want), "{message}");
        }
        assert!(Template::plain("fn main() { {prompt} }").is_ok(), "braces alone are text");
    }
}

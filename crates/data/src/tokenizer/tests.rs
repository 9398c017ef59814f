use super::*;
use crate::{bpe::train_bpe, gguf::GgufTokenizer, read::tests::shared};
use proptest::prelude::*;
use sha2::{Digest, Sha256};
use std::path::Path;

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

fn small() -> Tokenizer {
    train_bpe(["aa bb aa bb"], 262, &["<|endoftext|>", "<s>", "<pad>"]).unwrap()
}

fn json_of(tokenizer: &Tokenizer) -> String {
    String::from_utf8(tokenizer.files().unwrap().remove(0).1).unwrap()
}

#[track_caller]
fn check_refused(files: &[(&str, &str)], want: &str) {
    let folder = folder(files);
    let message = Tokenizer::from_folder(folder.path()).unwrap_err().to_string();
    assert!(message.starts_with(&*folder.path().to_string_lossy()), "names the file: {message}");
    assert!(message.contains(want), "{message}");
}

#[test]
fn gpt2s_two_files_give_gpt2s_ids() {
    let Some(path) = shared("tokenizers/gpt2") else { return };
    let tokenizer = Tokenizer::from_folder(path).unwrap();
    assert_eq!((tokenizer.vocab_size(), tokenizer.eos(), tokenizer.bos()), (50257, 50256, None));
    for (text, ids) in [
        ("Hello world", &[15496, 995][..]),
        ("hello world", &[31373, 995]),
        (" Hello,  world!\n", &[18435, 11, 220, 995, 0, 198]),
        ("", &[]),
    ] {
        assert_eq!(tokenizer.encode(text).unwrap(), ids, "{text:?}");
    }
    assert_eq!(tokenizer.encode_prompt("Hello<|endoftext|>").unwrap(), [15496, 50256]);
    assert!(!tokenizer.encode("Hello<|endoftext|>").unwrap().contains(&50256));
    assert_eq!(tokenizer.decode(&[15496, 50256, 995]).unwrap(), "Hello world");
    assert_eq!(tokenizer.decode_with_specials(&[15496, 50256]).unwrap(), "Hello<|endoftext|>");
}

/// Hashes by Python's tokenizers (`fixtures/reference/tokenizer.py`): every id of ten thousand lines of
/// real text, and what the ids decode to.
#[test]
fn ten_thousand_lines_are_encoded_and_decoded_as_in_python() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/reference/tokenizer/golden.json");
    let golden: Golden = serde_json::from_slice(&std::fs::read(golden).unwrap()).unwrap();
    let Some(gpt2) = shared("tokenizers/gpt2") else { return };
    let tokenizer = Tokenizer::from_folder(gpt2).unwrap();
    let mut text = String::new();
    for file in &golden.files {
        let Some(file) = shared(file) else { return };
        text += &std::fs::read_to_string(file).unwrap();
    }
    let lines: Vec<&str> = text.split_inclusive('\n').take(golden.lines).collect();
    let chunks = lines.chunks(golden.lines_per_chunk);
    assert_eq!((lines.len(), chunks.len()), (10_000, golden.chunks.len()));
    let differ = chunks.zip(&golden.chunks).filter(|(lines, wanted)| hashes(&tokenizer, lines) != **wanted).count();
    instruct_claims::holds(
        "round-trips/tokenizer",
        "10,000 lines with GPT-2's vocabulary, chunks that differ",
        differ as f64,
        0.0,
    );
}

#[derive(serde::Deserialize)]
struct Golden {
    files: Vec<String>,
    lines: usize,
    lines_per_chunk: usize,
    chunks: Vec<Hashes>,
}

/// SHA-256 of the ids as little-endian words, and of the text that they decode to.
#[derive(PartialEq, serde::Deserialize)]
struct Hashes {
    ids: String,
    text: String,
}

fn hashes(tokenizer: &Tokenizer, lines: &[&str]) -> Hashes {
    let (mut ids, mut text) = (Sha256::new(), Sha256::new());
    for line in lines {
        let encoded = tokenizer.encode(line).unwrap();
        let decoded = tokenizer.decode(&encoded).unwrap();
        assert_eq!(decoded, *line);
        encoded.iter().for_each(|id| ids.update(id.to_le_bytes()));
        text.update(decoded);
    }
    let hex = |hash: Sha256| hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Hashes { ids: hex(ids), text: hex(text) }
}

/// A folder, and what transformers' `AutoTokenizer` makes of it (`fixtures/reference/tokenizer.py`).
#[derive(serde::Deserialize)]
struct Case {
    name: String,
    files: BTreeMap<String, String>,
    added: BTreeMap<u32, AddedToken>,
    texts: Vec<Encoded>,
}

/// The ids of a text as a template and as people's words.
#[derive(serde::Deserialize)]
struct Encoded {
    text: String,
    marks: Vec<u32>,
    words: Vec<u32>,
}

#[test]
fn folders_are_read_as_transformers_reads_them() {
    #[derive(serde::Deserialize)]
    struct Golden {
        contents: BTreeMap<String, String>,
        folders: Vec<Case>,
    }
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/reference/tokenizer/folders.json");
    let golden: Golden = serde_json::from_slice(&std::fs::read(golden).unwrap()).unwrap();
    assert!(golden.folders.len() > 10);
    for case in golden.folders {
        let files = case.files.iter().map(|(name, content)| (name.as_str(), golden.contents[content].as_str()));
        let folder = folder(&files.collect::<Vec<_>>());
        let first = Tokenizer::from_folder(folder.path()).unwrap();
        check_case(&case, &first);
        // What is saved loads alike, whatever it was made of.
        let saved = tempfile::tempdir().unwrap();
        first.save(saved.path()).unwrap();
        check_case(&case, &Tokenizer::from_folder(saved.path()).unwrap());
        instruct_claims::holds("text/folders", &case.name, 0.0, 0.0);
    }
}

#[track_caller]
fn check_case(case: &Case, tokenizer: &Tokenizer) {
    let added: BTreeMap<u32, AddedToken> = tokenizer.marks.get_added_tokens_decoder().into_iter().collect();
    assert_eq!(added, case.added, "{}", case.name);
    for Encoded { text, marks, words } in &case.texts {
        assert_eq!(tokenizer.encode_prompt(text).unwrap(), *marks, "{}: {text:?}", case.name);
        assert_eq!(tokenizer.encode(text).unwrap(), *words, "{}: {text:?} as words", case.name);
    }
}

#[track_caller]
fn check_stops(files: &[(&str, &str)], want: &[u32]) {
    let whole = json_of(&small());
    let folder = folder(&[&[("tokenizer.json", whole.as_str())], files].concat());
    let stops = Tokenizer::from_folder(folder.path()).unwrap().stops().clone();
    assert_eq!(stops.into_iter().collect::<Vec<_>>(), want, "{files:?}");
}

#[test]
fn generation_stops_at_the_ids_of_the_file_that_is_heard_and_at_eos() {
    let two = ("config.json", r#"{"eos_token_id":[4,3]}"#);
    check_stops(&[], &[259]);
    check_stops(&[two], &[3, 4, 259]);
    check_stops(&[("config.json", r#"{"text_config":{"eos_token_id":5}}"#)], &[5, 259]);
    check_stops(&[two, ("generation_config.json", r#"{"eos_token_id":6}"#)], &[6, 259]);
    for silent in [r#"{"bos_token_id":1}"#, r#"{"eos_token_id":null}"#, r#"{"eos_token_id":[]}"#] {
        check_stops(&[two, ("generation_config.json", silent)], &[3, 4, 259]);
    }
}

/// The tokenizer of [`small`], whose last entries are the special tokens 259 to 261, beside `files`.
fn beside(files: &[(&str, &str)]) -> Result<Tokenizer, Error> {
    let whole = json_of(&small());
    let folder = folder(&[&[("tokenizer.json", whole.as_str())], files].concat());
    Tokenizer::from_folder(folder.path())
}

#[track_caller]
fn check_says<T: std::fmt::Debug>(outcome: Result<T, Error>, parts: &[&str]) {
    let message = outcome.unwrap_err().to_string();
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}

#[test]
fn tokens_without_an_embedding_row_are_spelled_or_refused() {
    let rows = ("config.json", r#"{"vocab_size":261}"#);
    let pad = ("tokenizer_config.json", r#"{"pad_token":"<pad>"}"#);
    let tokenizer = beside(&[rows, pad]).unwrap();
    tokenizer.check_vocab(261).unwrap();
    assert_eq!((tokenizer.pad(), tokenizer.special_in("a<pad>")), (None, Some("<pad>")));
    let ids = tokenizer.encode("aa<pad>").unwrap();
    assert!(ids.iter().all(|&id| id < 259) && tokenizer.decode(&ids).unwrap() == "aa<pad>", "{ids:?}");
    check_says(tokenizer.encode_prompt("<s>aa<pad>"), &["`<pad>` is token 261", "261 embedding rows", "template"]);
    assert_eq!(tokenizer.encode_prompt("<s>").unwrap(), [260]);
    // A token that is no special one would else be found in people's words.
    let tool = r#"{"added_tokens_decoder":{"262":{"content":"<tool>","special":false}}}"#;
    let files = [("config.json", r#"{"vocab_size":262}"#), ("tokenizer_config.json", tool)];
    let tokenizer = beside(&files).unwrap();
    tokenizer.check_vocab(262).unwrap();
    assert!(tokenizer.encode("<tool>").unwrap().iter().all(|&id| id < 259));
    check_says(tokenizer.encode_prompt("<tool>"), &["`<tool>` is token 262"]);
    // The same model with one more row.
    let files = [("config.json", r#"{"vocab_size":263}"#), ("tokenizer_config.json", tool)];
    assert_eq!(beside(&files).unwrap().encode("<tool>").unwrap(), [262]);
}

#[test]
fn a_model_has_a_row_for_all_that_it_needs() {
    let rows = ("config.json", r#"{"vocab_size":261}"#);
    let needed = |config: &str| beside(&[rows, ("tokenizer_config.json", config)]).unwrap().check_vocab(261);
    check_says(needed(r#"{"eos_token":"<pad>"}"#), &["`<pad>` is token 261", "261 embedding rows"]);
    check_says(needed(r#"{"bos_token":"<pad>","add_bos_token":true}"#), &["`<pad>` is token 261"]);
    needed(r#"{"bos_token":"<pad>","add_bos_token":false}"#).unwrap();
    check_says(beside(&[("config.json", r#"{"vocab_size":200}"#)]), &["259 entries", "200 embedding rows"]);
    check_says(beside(&[]).unwrap().check_vocab(261), &["262 entries", "261 embedding rows"]);
    check_says(beside(&[rows]).unwrap().check_vocab(260), &["262 entries", "260 embedding rows"]);
}

#[test]
fn added_tokens_that_contradict_themselves_are_named() {
    let decoder = |decoder: &str| {
        let config = format!(r#"{{"added_tokens_decoder":{decoder}}}"#);
        beside(&[("tokenizer_config.json", config.as_str())])
    };
    check_says(decoder(r#"{"300":{"content":"<tool>"}}"#), &["`<tool>` is to be 300", "262"]);
    check_says(decoder(r#"{"x":{"content":"<tool>"}}"#), &["`added_tokens_decoder`", "`x`"]);
    check_says(decoder(r#"{"262":{"content":""}}"#), &["`262` is no token"]);
    check_says(beside(&[("added_tokens.json", r#"{"<tool>":-1}"#)]), &["added_tokens.json: `<tool>`"]);
    // What the vocabulary has keeps its id.
    assert_eq!(decoder(r#"{"7":{"content":"<s>","special":true}}"#).unwrap().id("<s>"), Some(260));
}

/// Transformers 5.23 forgets it, and words that spell the token become it.
#[test]
fn a_token_that_a_list_calls_special_is_special() {
    let map = ("special_tokens_map.json", r#"{"additional_special_tokens":["<tool>",{"content":"<more>"}]}"#);
    let tokenizer = beside(&[map, ("added_tokens.json", r#"{"<tool>":262,"<other>":263}"#)]).unwrap();
    assert_eq!(["<tool>", "<other>", "<more>"].map(|token| tokenizer.id(token)), [Some(262), Some(263), Some(264)]);
    assert_eq!(tokenizer.encode_prompt("<more><tool>").unwrap(), [264, 262]);
    assert!(tokenizer.encode("<more><tool>").unwrap().iter().all(|&id| id < 259));
}

#[test]
fn kinds_of_models_and_classes_that_are_not_read_are_named() {
    let model = |model: &str| format!(r#"{{"version":"1.0","added_tokens":[],"model":{model}}}"#);
    for (kind, text) in [
        ("Unigram", r#"{"type":"Unigram","unk_id":0,"vocab":[["a",0.0],["b",-1.5]]}"#),
        ("Unigram", r#"{"vocab":[["a",0.0]],"unk_id":0,"type":"Unigram"}"#),
        ("WordPiece", r####"{"type":"WordPiece","continuing_subword_prefix":"##","vocab":{"a":0}}"####),
        ("WordLevel", r#"{"type":"WordLevel","unk_token":"a","vocab":{"a":0}}"#),
    ] {
        let want = format!("`model.type` is `{kind}`; `BPE` is read");
        check_refused(&[("tokenizer.json", &model(text))], &want);
    }
    let many =
        r#"{"type":"BPE","vocab":{"a":0,"aa":1},"merges":["MANY"]}"#.replace("MANY", &["a a"; 17].join(r#"",""#));
    check_refused(&[("tokenizer.json", &model(&many))], "`model.merges` are 17, more than the 16 that 2 entries may");
    let other = r#"{"version":"2.0","model":null}"#;
    check_refused(&[("tokenizer.json", other)], "`version` is `2.0`; `1.0` is read");
    let pair = [("vocab.json", r#"{"a":0,"<|endoftext|>":1}"#), ("merges.txt", "#version: 0.2\n")];
    for (file, text, want) in [
        (
            "tokenizer_config.json",
            r#"{"tokenizer_class":"RobertaTokenizer"}"#,
            "`tokenizer_class` is `RobertaTokenizer`",
        ),
        ("config.json", r#"{"tokenizer_class":"LlamaTokenizerFast"}"#, "`tokenizer_class` is `LlamaTokenizerFast`"),
        ("config.json", r#"{"model_type":"llama"}"#, "models of type `llama` have no words of their own"),
    ] {
        check_refused(&[&pair[..], &[(file, text)]].concat(), want);
    }
    let folder = folder(&pair);
    assert_eq!(Tokenizer::from_folder(folder.path()).unwrap().encode_prompt("a<|endoftext|>").unwrap(), [0, 1]);
}

#[test]
fn what_is_saved_is_what_is_loaded() {
    let config = r#"{"eos_token":{"content":"<|endoftext|>"},"bos_token":"<s>","pad_token":"<pad>","add_bos_token":true,
        "chat_template":[{"name":"tools","template":"t"},{"name":"default","template":"{{ messages }}"}]}"#;
    let first = folder(&[
        ("tokenizer.json", &json_of(&small())),
        ("tokenizer_config.json", config),
        ("generation_config.json", r#"{"eos_token_id":[259,3]}"#),
    ]);
    let loaded = Tokenizer::from_folder(first.path()).unwrap();
    assert_eq!((loaded.eos(), loaded.bos(), loaded.pad()), (259, Some(260), Some(261)));
    assert_eq!(loaded.stops().iter().copied().collect::<Vec<_>>(), [3, 259]);
    assert_eq!(loaded.chat_template(), Some("{{ messages }}"));
    assert_eq!(loaded.encode_prompt("aa").unwrap()[0], 260);
    assert_eq!(loaded.encode_prompt("<s>aa").unwrap(), loaded.encode_prompt("aa").unwrap(), "one BOS");
    assert_ne!(loaded.encode("aa").unwrap()[0], 260);

    let second = tempfile::tempdir().unwrap();
    loaded.save(second.path()).unwrap();
    let again = Tokenizer::from_folder(second.path()).unwrap();
    assert_eq!(again.files().unwrap(), loaded.files().unwrap());
    assert_eq!(again.encode_prompt("aa bb<pad>").unwrap(), loaded.encode_prompt("aa bb<pad>").unwrap());
    // The saved post-processor alone adds the BOS, for those who load it without us.
    let outside = tokenizers::Tokenizer::from_file(second.path().join("tokenizer.json")).unwrap();
    assert_eq!(outside.encode_fast("aa", true).unwrap().get_ids()[0], 260);
    assert_eq!(outside.encode_fast("aa", false).unwrap().get_ids(), loaded.encode("aa").unwrap());
    let without = loaded.with_chat_template(None);
    assert_eq!(without.chat_template(), None);
}

#[test]
fn pad_is_never_eos_and_a_jinja_file_wins() {
    let config = r#"{"eos_token":"<|endoftext|>","pad_token":"<|endoftext|>","chat_template":"old"}"#;
    let folder = folder(&[
        ("tokenizer.json", &json_of(&small())),
        ("tokenizer_config.json", config),
        ("chat_template.jinja", "new"),
    ]);
    let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
    assert_eq!((tokenizer.pad(), tokenizer.chat_template()), (None, Some("new")));
    assert!(!String::from_utf8(tokenizer.files().unwrap().remove(1).1).unwrap().contains("pad_token"));
}

#[test]
fn somebodys_truncation_and_padding_are_undone() {
    let text = json_of(&small())
        .replace(
            r#""truncation":null"#,
            r#""truncation":{"direction":"Right","max_length":2,"strategy":"LongestFirst","stride":0}"#,
        )
        .replace(
            r#""padding":null"#,
            r#""padding":{"strategy":{"Fixed":9},"direction":"Right","pad_to_multiple_of":null,"pad_id":1,"pad_type_id":0,"pad_token":"x"}"#,
        );
    let folder = folder(&[("tokenizer.json", &text)]);
    let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
    assert_eq!(tokenizer.encode("q").unwrap().len(), 1);
    assert_eq!(tokenizer.encode("qwert").unwrap().len(), 5);
}

#[test]
fn unusable_folders_say_why() {
    let good = json_of(&small());
    let anonymous = good.replace("<|endoftext|>", "<|fin|>");
    check_refused(&[], "neither tokenizer.json nor vocab.json");
    check_refused(&[("tokenizer.json", "{}")], "no tokenizer that can be read");
    check_refused(&[("tokenizer.json", &anonymous)], "no `eos_token` is named");
    let config = r#"{"eos_token":"</s>"}"#;
    check_refused(&[("tokenizer.json", &anonymous), ("tokenizer_config.json", config)], "`eos_token` is `</s>`");
    check_refused(&[("tokenizer.json", &good), ("tokenizer_config.json", "{")], "no JSON object");
    check_refused(&[("vocab.json", "[]"), ("merges.txt", "")], "no object of ids");
    check_refused(&[("vocab.json", r#"{"a":0}"#), ("merges.txt", "#version: 0.2\na b c\n")], "merges.txt:2: no merge");
    check_refused(&[("vocab.json", r#"{"a":0}"#), ("merges.txt", "a b\n")], "vocabulary and merges do not fit");
    let message = small().check_vocab(261).unwrap_err().to_string();
    assert!(message.contains("262 entries") && message.contains("261 embedding rows"), "{message}");
    assert!(small().check_vocab(262).is_ok() && small().check_vocab(300).is_ok());
}

#[test]
fn special_tokens_in_peoples_words_are_noticed() {
    let tokenizer = small();
    assert_eq!(tokenizer.special_in("strike <s>this</s> <pad>"), Some("<s>"));
    assert_eq!(tokenizer.special_in("a < s > b"), None);
    let ids = tokenizer.encode("<s> <|endoftext|>").unwrap();
    assert!(ids.iter().all(|&id| id < 259));
    assert_eq!(tokenizer.decode(&ids).unwrap(), "<s> <|endoftext|>");
    assert_eq!(tokenizer.token(260).as_deref(), Some("<s>"));
}

/// A byte-level GGUF vocabulary with two merges, and digits as `pre` says.
fn byte_level_gguf(pre: &str) -> GgufTokenizer {
    let bytes = crate::bpe::byte_chars().map(String::from);
    let more = ["12", "123", "\u{120}a", "<|user|>", "<|end|>"].map(String::from);
    let tokens: Vec<String> = bytes.into_iter().chain(more).collect();
    let types = (0..tokens.len())
        .map(|id| {
            if id == 260 {
                3
            } else if id == 259 {
                4
            } else {
                1
            }
        })
        .collect();
    GgufTokenizer {
        path: "model.gguf".into(),
        model: "gpt2".to_owned(),
        pre: Some(pre.to_owned()),
        tokens,
        token_types: types,
        merges: vec!["1 2".to_owned(), "12 3".to_owned(), "\u{120} a".to_owned()],
        eos: Some(260),
        padding: Some(260),
        ..GgufTokenizer::default()
    }
}

#[test]
fn gguf_names_say_how_numbers_split() {
    for (pre, text, want) in [
        ("gpt-2", "1234 a", &["123", "4", "\u{120}a"][..]),
        ("smollm", "1234 a", &["1", "2", "3", "4", "\u{120}a"]),
        ("llama-bpe", "1234 a", &["123", "4", "\u{120}a"]),
        ("qwen2", "1234 a", &["1", "2", "3", "4", "\u{120}a"]),
        ("deepseek-r1-qwen", "1234 a", &["1", "2", "3", "4", "\u{120}a"]),
        ("stablelm2", "1234 a", &["1", "2", "3", "4", "\u{120}a"]),
        ("smaug-bpe", "1234 a", &["123", "4", "\u{120}a"]),
        ("codeshell", "1234 a", &["1", "2", "3", "4", "\u{120}a"]),
        ("gigachat", "1234 a", &["123", "4", "\u{120}a"]),
    ] {
        let tokenizer = Tokenizer::from_gguf(&byte_level_gguf(pre)).unwrap();
        let ids = tokenizer.encode(text).unwrap();
        let tokens: Vec<String> = ids.iter().map(|&id| tokenizer.token(id).unwrap()).collect();
        assert_eq!(tokens, want, "{pre}");
        assert_eq!(tokenizer.decode(&ids).unwrap(), text, "{pre}");
        assert_eq!((tokenizer.eos(), tokenizer.pad(), tokenizer.vocab_size()), (260, None, 261));
        assert_eq!(tokenizer.encode_prompt("<|user|><|end|>").unwrap(), [259, 260]);
        assert_eq!(tokenizer.encode("<|end|>").unwrap().len(), 7);
    }
    // Three digits at most stand in one word of Llama 3, however far the merges reach.
    let mut long = byte_level_gguf("llama-bpe");
    long.tokens.push("1231".to_owned());
    long.token_types.push(1);
    long.merges.push("123 1".to_owned());
    assert_eq!(Tokenizer::from_gguf(&long).unwrap().encode("1231").unwrap().len(), 2);
    long.pre = Some("gpt-2".to_owned());
    assert_eq!(Tokenizer::from_gguf(&long).unwrap().encode("1231").unwrap(), [261]);
}

/// llama.cpp's `llama_vocab_pre_type`: some names mean a BOS that is not spelled out, and words that are tokens already.
#[test]
fn gguf_names_of_llama_3_begin_sequences_and_keep_whole_words() {
    for (pre, whole) in [("llama-bpe", true), ("llama-v3", true), ("falcon3", true), ("lfm2", true), ("dbrx", false)] {
        let mut gguf = byte_level_gguf(pre);
        gguf.tokens.push("xyz".to_owned());
        gguf.token_types.push(1);
        gguf.bos = Some(260);
        let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
        assert_eq!(tokenizer.encode("xyz").unwrap().len(), if whole { 1 } else { 3 }, "{pre}");
        assert_eq!(tokenizer.encode_prompt("a").unwrap().len(), if whole { 2 } else { 1 }, "{pre}");
    }
}

/// The token of a GGUF file, of this type, ends texts or does not; if it does, words that spell it stay words, and
/// decoding hides it.
#[track_caller]
fn check_end(gguf: &GgufTokenizer, token: &str, kind: i32, ends: bool) {
    let mut gguf = gguf.clone();
    let id = gguf.tokens.len() as u32;
    gguf.tokens.push(token.to_owned());
    gguf.token_types.push(kind);
    if !gguf.scores.is_empty() {
        gguf.scores.push(0.0);
    }
    let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
    assert_eq!(tokenizer.stops().contains(&id), ends, "{token}, {kind}");
    if ends {
        check_words(&tokenizer, id);
    }
}

/// Words that spell a token that ends texts stay words; a template's do not; an answer lacks it.
#[track_caller]
fn check_words(tokenizer: &Tokenizer, id: u32) {
    let text = format!("a{}b", tokenizer.token(id).unwrap());
    let words = tokenizer.encode(&text).unwrap();
    assert!(!words.contains(&id), "{text}: {words:?}");
    assert_eq!(tokenizer.decode(&words).unwrap(), text);
    assert_eq!(tokenizer.special_in(&text), tokenizer.token(id).as_deref());
    let marks = tokenizer.encode_prompt(&text).unwrap();
    assert!(marks.contains(&id), "{text}: {marks:?}");
    assert_eq!(tokenizer.decode(&marks).unwrap().replace(' ', ""), "ab");
    let saved = tempfile::tempdir().unwrap();
    tokenizer.save(saved.path()).unwrap();
    assert_eq!(Tokenizer::from_folder(saved.path()).unwrap().encode(&text).unwrap(), words);
}

/// A SentencePiece vocabulary in which every character of `letters` is a token, and what begins with them too.
fn scored_gguf(letters: &str, token: &str) -> GgufTokenizer {
    let bytes = (0..=255).map(|byte| format!("<0x{byte:02X}>"));
    let parts =
        token.char_indices().skip(1).map(|(at, _)| token[..at].to_owned()).filter(|part| part.chars().count() > 1);
    let letters = letters.chars().map(String::from);
    let marks = ["<unk>", "<s>", "</s>"].map(String::from);
    let tokens: Vec<String> = marks.into_iter().chain(bytes).chain(letters).chain(parts).collect();
    let kind = |id: usize| match id {
        0 => 2,
        1 | 2 => 3,
        3..=258 => 6,
        _ => 1,
    };
    GgufTokenizer {
        model: "llama".to_owned(),
        token_types: (0..tokens.len()).map(kind).collect(),
        scores: (0..tokens.len()).map(|id| -(id as f32)).collect(),
        tokens,
        bos: Some(1),
        eos: Some(2),
        unknown: Some(0),
        ..GgufTokenizer::default()
    }
}

#[test]
fn gguf_stops_are_what_is_named_and_what_is_spelled_like_an_end() {
    let bytes = byte_level_gguf("gpt-2");
    let scored = scored_gguf("\u{2581}<>_abdefnortu", "<end_of_turn>");
    for (token, kind, ends) in [
        ("<|im_end|>", 3, true),
        ("<|eot_id|>", 4, true),
        ("<end_of_turn>", 3, true),
        ("<end_of_turn>", 4, true),
        // Converters have written them as ordinary tokens; llama.cpp makes control tokens of them.
        ("<end_of_turn>", 1, true),
        ("<|im_end|>", 1, true),
        ("<|im_start|>", 3, false),
        ("<|fim_pad|>", 3, false),
    ] {
        check_end(&bytes, token, kind, ends);
        check_end(&scored, token, kind, ends);
    }
    // HTML's, if it is no control token.
    for (kind, ends) in [(1, false), (3, true), (4, false)] {
        check_end(&bytes, "</s>", kind, ends);
    }
    // What the metadata name ends texts, however it is spelled.
    for (kind, named) in [1, 3, 4].into_iter().flat_map(|kind| [0, 1, 2].map(|named| (kind, named))) {
        let mut gguf = byte_level_gguf("gpt-2");
        let id = Some(gguf.tokens.len() as u32);
        *[&mut gguf.eos, &mut gguf.eot, &mut gguf.eom][named] = id;
        check_end(&gguf, "<so>", kind, true);
    }
    let named = GgufTokenizer { eot: Some(7), eom: Some(8), ..byte_level_gguf("gpt-2") };
    assert_eq!(*Tokenizer::from_gguf(&named).unwrap().stops(), [7, 8, 260].into());
}

/// A token that only `generation_config.json` names as an end, and that `added_tokens_decoder` calls ordinary.
#[test]
fn an_end_of_a_folder_is_no_word() {
    let decoder = r#"{"added_tokens_decoder":{"262":{"content":"<turn>","special":false}}}"#;
    let files = [("tokenizer_config.json", decoder), ("generation_config.json", r#"{"eos_token_id":[259,262]}"#)];
    check_words(&beside(&files).unwrap(), 262);
    // Without that file it is a word like others.
    assert_eq!(beside(&files[..1]).unwrap().encode("<turn>").unwrap(), [262]);
}

#[test]
fn a_day_beside_a_template_is_read_or_refused() {
    let dated = |day: &str| beside(&[("tokenizer_config.json", &format!(r#"{{"chat_template_date":"{day}"}}"#))]);
    assert_eq!(dated("2026-01-05").unwrap().date(), Some("2026-01-05".parse().unwrap()));
    assert_eq!(beside(&[]).unwrap().date(), None);
    check_says(dated("January"), &["tokenizer_config.json", "`chat_template_date`", "`January` is no day"]);
    let number = beside(&[("tokenizer_config.json", r#"{"chat_template_date":20260105}"#)]);
    check_says(number, &["`chat_template_date`: wants a day as text", "not 20260105"]);
    assert_eq!(beside(&[("tokenizer_config.json", r#"{"chat_template_date":null}"#)]).unwrap().date(), None);
}

#[test]
fn unusable_gguf_metadata_names_its_key() {
    let good = byte_level_gguf("gpt-2");
    let bad = [
        (GgufTokenizer { model: "t5".into(), ..good.clone() }, "`tokenizer.ggml.model` is `t5`"),
        (GgufTokenizer { pre: Some("tekken".into()), ..good.clone() }, "`tokenizer.ggml.pre` is `tekken`"),
        (GgufTokenizer { token_types: vec![1], ..good.clone() }, "`tokenizer.ggml.token_type` has 1 entries"),
        (GgufTokenizer { model: "llama".into(), ..good.clone() }, "`tokenizer.ggml.scores` has 0 entries"),
        (GgufTokenizer { merges: vec!["ab".into()], ..good.clone() }, "`tokenizer.ggml.merges[0]` is `ab`"),
        (GgufTokenizer { merges: vec!["x yz".into()], ..good.clone() }, "do not fit"),
        (GgufTokenizer { eos: Some(9999), ..good.clone() }, "`eos_token_id` is 9999"),
        (GgufTokenizer { eot: Some(9998), ..good.clone() }, "`eot_token_id` is 9998"),
        (GgufTokenizer { eom: Some(9997), ..good.clone() }, "`eom_token_id` is 9997"),
        (GgufTokenizer { eos: None, ..good }, "`tokenizer.ggml.eos_token_id` is missing; use the model's Hugging Face"),
    ];
    for (gguf, want) in bad {
        let message = Tokenizer::from_gguf(&gguf).unwrap_err().to_string();
        assert!(message.starts_with("model.gguf: ") && message.contains(want), "{message}");
    }
}

/// llama2.c's format: the longest token's length, then score, length and bytes of each.
fn tok512(bytes: &[u8]) -> GgufTokenizer {
    let word = |at: usize| <[u8; 4]>::try_from(&bytes[at..at + 4]).unwrap();
    let mut gguf = GgufTokenizer {
        model: "llama".to_owned(),
        bos: Some(1),
        eos: Some(2),
        unknown: Some(0),
        ..GgufTokenizer::default()
    };
    let mut at = 4;
    while at < bytes.len() {
        let length = u32::from_le_bytes(word(at + 4)) as usize;
        gguf.scores.push(f32::from_le_bytes(word(at)));
        // The file spells the space as a space and ▁ is what SentencePiece and GGUF write.
        gguf.tokens.push(String::from_utf8_lossy(&bytes[at + 8..at + 8 + length]).replace(' ', "\u{2581}"));
        at += 8 + length;
    }
    let kind = |id: usize| match id {
        0 => 2,
        1 | 2 => 3,
        3..=258 => 6,
        _ => 1,
    };
    gguf.token_types = (0..gguf.tokens.len()).map(kind).collect();
    gguf
}

#[test]
fn scores_become_merges() {
    let Some(path) = shared("models/stories260K/tok512.bin") else { return };
    let gguf = tok512(&std::fs::read(path).unwrap());
    let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
    assert_eq!(tokenizer.vocab_size(), 512);
    // The prompt of llama2.c's documentation.
    assert_eq!(tokenizer.encode_prompt("Once upon a time").unwrap(), [1, 403, 407, 261, 378]);
    for text in ["Once upon a time, there was a little girl.\n", "Zoë paid 5€ 🙂", "  two  spaces ", ""] {
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        assert_eq!(ids, greedy(&gguf, text), "{text:?}");
    }
}

/// SentencePiece's definition: join the neighbours whose union scores best, the leftmost of equals,
/// until none is a token; spell what is unknown in bytes.
fn greedy(gguf: &GgufTokenizer, text: &str) -> Vec<u32> {
    let id = |token: &str| gguf.tokens.iter().position(|t| t == token);
    let spaced = if text.is_empty() { String::new() } else { format!("\u{2581}{}", text.replace(' ', "\u{2581}")) };
    let mut parts: Vec<String> = spaced.chars().map(String::from).collect();
    loop {
        let score = |i: usize| id(&format!("{}{}", parts[i], parts[i + 1])).map(|t| gguf.scores[t]);
        let best = (1..parts.len()).filter_map(|i| Some((score(i - 1)?, i - 1)));
        let best = best.max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
        let Some((_, at)) = best else { break };
        let right = parts.remove(at + 1);
        parts[at].push_str(&right);
    }
    let spell = |part: &String| match id(part) {
        Some(id) => vec![id as u32],
        None => part.bytes().map(|byte| u32::from(byte) + 3).collect(),
    };
    parts.iter().flat_map(spell).collect()
}

proptest! {
    #[test]
    fn gpt2_round_trips_any_text(text: String) {
        // Loading takes half a second; once is enough.
        static GPT2: std::sync::LazyLock<Option<Tokenizer>> =
            std::sync::LazyLock::new(|| Some(Tokenizer::from_folder(shared("tokenizers/gpt2")?).unwrap()));
        if let Some(tokenizer) = &*GPT2 {
            prop_assert_eq!(tokenizer.decode(&tokenizer.encode(&text).unwrap()).unwrap(), text);
        }
    }
}

/// The padding token that a model of so many rows is exported with, by name; written and read again it is the
/// tokenizer's own.
#[track_caller]
fn check_padding(specials: &[&str], template: Option<&str>, rows: usize, want: impl Fn(&str) -> bool) {
    let tokenizer = train_bpe(["aa \u{e9}\u{e9} aa \u{e9}\u{e9}"], 256 + 4 + specials.len(), specials).unwrap();
    let tokenizer = tokenizer.with_chat_template(template.map(str::to_owned));
    let padded = tokenizer.clone().with_padding(tokenizer.vocab_size() + rows, &BTreeSet::new()).unwrap();
    let pad = padded.pad().unwrap();
    let name = padded.token(pad).unwrap();
    assert!(want(&name), "{name}");
    assert!((pad as usize) < tokenizer.vocab_size() + rows && !padded.stops().contains(&pad));
    let text = "aa <|pad|> \u{e9} b";
    assert_eq!(padded.encode(text).unwrap(), tokenizer.encode(text).unwrap(), "words are as they were");
    let folder = tempfile::tempdir().unwrap();
    padded.save(folder.path()).unwrap();
    let again = Tokenizer::from_folder(folder.path()).unwrap();
    assert_eq!(again.pad(), Some(pad));
    assert_eq!(again.with_padding(tokenizer.vocab_size() + rows, &BTreeSet::new()).unwrap().pad(), Some(pad));
}

#[test]
fn padding_never_ends_a_text_and_is_the_least_token_to_miss() {
    check_padding(&["<e>", "<u>"], None, 4, |name| name == "<u>");
    check_padding(&["<e>", "<u>", "<v>"], Some("{{ '<u>' }}"), 0, |name| name == "<v>");
    check_padding(&["<e>", "<u>"], Some("{{ '<u>' }}"), 1, |name| name == "<|pad|>");
    check_padding(&["<e>"], None, 1, |name| name == "<|pad|>");
    // Of Qwen 2.5's kind: the model's files name a BOS, the tokenizer pads with it and names none.
    let (config, rows) = (r#"{"pad_token":"<pad>"}"#, small().vocab_size());
    let tokenizer = beside(&[("tokenizer_config.json", config)]).unwrap();
    assert_eq!(tokenizer.clone().with_padding(rows, &BTreeSet::new()).unwrap().pad(), Some(261));
    assert_eq!(tokenizer.clone().with_padding(rows, &[261].into()).unwrap().pad(), Some(260));
    check_says(tokenizer.with_padding(2, &[0, 1].into()), &["below 2 begins or ends texts"]);
    // No row is free: half of a character, which only odd texts yield.
    check_padding(&["<e>"], None, 0, |name| name.chars().count() > 1 && !name.is_ascii());
}

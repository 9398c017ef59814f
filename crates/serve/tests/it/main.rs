//! A server with a small model, asked over real connections.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]
#![allow(clippy::print_stdout, reason = "a test that skips says so")]

mod api;
mod clients;
mod pages;

use candle_core::{DType, Device};
use instruct_data::{Content, Origin, Prompt, Renderer, Template, train_bpe};
use instruct_feedback::{Sampled, Settings, Task, tasks_from};
use instruct_kernels::Path;
use instruct_model::{Config, Decoder, HeadKind, Room};
use instruct_serve::{File, Gate, Handed, Labeler, People, Service, Stopper, Store, Voice, digest, serve, stopper};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, LazyLock, Mutex},
    thread::JoinHandle,
    time::Duration,
};

const TEXT: &str = "The colour of the sky is blue, and the colour of grass is green. Name a colour. Why is the sky blue? \
                    Nobody knows the answer. I think it is the light of the sun. User: Assistant: naïve café 🙂 日本語";
const CONTEXT: usize = 96;
pub(crate) const TOKEN: &str = "t0ken";

/// A model of random weights, which speaks in whatever bytes it likes.
static MODEL: LazyLock<(Arc<Decoder>, Renderer)> = LazyLock::new(|| {
    let texts = [TEXT; 4];
    let tokenizer = train_bpe(texts, 300, &["<end>"]).unwrap();
    let config = Config::tiny_gpt2(300, 32, 2, 2, CONTEXT);
    let decoder = Decoder::zeros(config, HeadKind::LanguageModel, &Device::Cpu, Path::Fused, DType::F32).unwrap();
    decoder.initialise(3).unwrap();
    let template = Template::plain("User: {prompt}\nAssistant:").unwrap();
    (Arc::new(decoder), Renderer::new(tokenizer, template).unwrap())
});

/// Files in memory, which outlive a server.
#[derive(Clone, Default)]
pub(crate) struct Memory(Arc<Mutex<BTreeMap<File, Vec<u8>>>>);

impl Memory {
    fn with(tasks: &[Task]) -> Memory {
        let memory = Memory::default();
        let lines: String = tasks.iter().map(Task::line).collect();
        memory.0.lock().unwrap().insert(File::Tasks, lines.into_bytes());
        memory
    }

    /// The lines of a file.
    fn lines(&self, file: File) -> Vec<Value> {
        let bytes = self.0.lock().unwrap().get(&file).cloned().unwrap_or_default();
        String::from_utf8(bytes).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl Store for Memory {
    fn read(&mut self, file: File) -> io::Result<Vec<u8>> {
        Ok(self.0.lock().unwrap().get(&file).cloned().unwrap_or_default())
    }

    fn append(&mut self, file: File, bytes: &[u8]) -> io::Result<()> {
        self.0.lock().unwrap().entry(file).or_default().extend(bytes);
        Ok(())
    }

    fn cut(&mut self, file: File, bytes: u64) -> io::Result<()> {
        self.0.lock().unwrap().entry(file).or_default().truncate(bytes as usize);
        Ok(())
    }
}

/// How a server is started.
#[derive(Clone)]
pub(crate) struct Setting {
    pub(crate) slots: usize,
    pub(crate) queue: usize,
    pub(crate) keys: Option<Vec<[u8; 32]>>,
    pub(crate) memory: Memory,
    pub(crate) keeps_answers: bool,
    /// 0 takes one that is free.
    pub(crate) port: u16,
    /// Whoever holds it lets no score be given.
    pub(crate) held: Arc<Mutex<()>>,
}

impl Default for Setting {
    fn default() -> Setting {
        let (memory, held) = Default::default();
        Setting { slots: 8, queue: 64, keys: None, memory, keeps_answers: true, port: 0, held }
    }
}

/// A server that is stopped when it is dropped.
pub(crate) struct Server {
    pub(crate) at: SocketAddr,
    stopper: Option<Stopper>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(setting: &Setting) -> Server {
        let (decoder, renderer) = MODEL.clone();
        let room = Room { slots: setting.slots, capacity: CONTEXT, chunk: 16 };
        let voice = Voice { name: "tiny".into(), decoder, renderer, room, precision: "f32" };
        let labeler = |id: &str, token: &str, is_admin| Labeler { id: id.into(), token: digest(token), is_admin };
        let gate = Gate {
            hosts: vec!["127.0.0.1".into()],
            keys: setting.keys.clone(),
            labelers: vec![labeler("ann", TOKEN, true), labeler("bob", "b0b", false)],
        };
        let held = setting.held.clone();
        let reward = move |texts: &[String]| {
            drop(held.lock());
            Ok(texts.iter().map(|text| text.len() as f32).collect())
        };
        let handed = Handed { second: Arc::new(|| 1_000), chance: 5, reward: Some(Arc::new(reward)) };
        let store = Box::new(setting.memory.clone());
        let (people, _) =
            People::open(store, Settings::default(), "# Be kind".to_owned(), setting.keeps_answers).unwrap();
        let (service, model) = Service::new(voice, gate, Some(people), setting.queue, handed);
        // Meanwhile another test may have been given the port for a connection of its own, which ends soon.
        let bind = |_| {
            let listener = TcpListener::bind(("127.0.0.1", setting.port)).ok();
            listener.or_else(|| (std::thread::sleep(Duration::from_millis(20)), None).1)
        };
        let listener = (0..5_000).find_map(bind).expect("the port is free again");
        let at = listener.local_addr().unwrap();
        let (stopper, stopped) = stopper();
        let thread = std::thread::spawn(move || {
            serve(listener, service, stopped).unwrap();
            model.join().unwrap();
        });
        Server { at, stopper: Some(stopper), thread: Some(thread) }
    }

    /// The answer to a GET, with a person's cookie.
    pub(crate) fn get(&self, path: &str) -> Answer {
        self.send(&format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nCookie: instruct-{}={TOKEN}\r\n\r\n",
            self.at,
            self.at.port()
        ))
    }

    /// The answer to a POST of JSON by a program.
    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_with(path, "", &body.to_string())
    }

    /// The answer to a POST of JSON by a person.
    pub(crate) fn post_as(&self, token: &str, path: &str, body: &Value) -> Answer {
        self.post_with(path, &format!("Cookie: instruct-{}={token}\r\n", self.at.port()), &body.to_string())
    }

    pub(crate) fn post_with(&self, path: &str, headers: &str, body: &str) -> Answer {
        let (host, length) = (self.at, body.len());
        let head = format!("POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n{headers}");
        self.send(&format!("{head}Content-Length: {length}\r\n\r\n{body}"))
    }

    /// The answer to these bytes.
    pub(crate) fn send(&self, request: &str) -> Answer {
        let mut stream = TcpStream::connect(self.at).unwrap();
        // A refusal may come before a long body has been read.
        let _ = stream.write_all(request.replacen("\r\n", "\r\nConnection: close\r\n", 1).as_bytes());
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        Answer::of(&bytes)
    }

    pub(crate) fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        drop(self.stopper.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// What a server says.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    fn of(bytes: &[u8]) -> Answer {
        let at = bytes.windows(4).position(|end| end == b"\r\n\r\n").expect("an answer has a head");
        let head = String::from_utf8(bytes[..at].to_vec()).unwrap();
        let body = &bytes[at + 4..];
        let body = if head.contains("transfer-encoding: chunked") { unchunked(body) } else { body.to_vec() };
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { status, head, body: String::from_utf8(body).unwrap() }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|why| panic!("{why}: {self:?}"))
    }

    /// The values of a stream of events, without its end, which must be there.
    pub(crate) fn events(&self) -> Vec<Value> {
        let events: Vec<&str> = self.body.split("\n\n").filter(|event| !event.is_empty()).collect();
        let (last, events) = events.split_last().unwrap();
        assert_eq!(*last, "data: [DONE]", "{self:?}");
        events.iter().map(|event| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap()).collect()
    }
}

fn unchunked(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let Some(line) = rest.windows(2).position(|end| end == b"\r\n") else { return body };
        let length = usize::from_str_radix(std::str::from_utf8(&rest[..line]).unwrap(), 16).unwrap();
        if length == 0 {
            return body;
        }
        body.extend(&rest[line + 2..][..length]);
        rest = &rest[line + 2 + length + 2..];
    }
}

/// A task to rank these texts.
pub(crate) fn task(prompt: &str, texts: &[&str]) -> Task {
    let content = Content::Text(prompt.to_owned());
    let prompt = Prompt { id: "p".into(), content, user: None, use_case: None, origin: Origin::new("p.jsonl", 1) };
    let completions = texts.iter().enumerate().map(|(i, text)| (format!("model-{i}"), (*text).to_owned())).collect();
    tasks_from(&[Sampled { prompt, completions }], 7).unwrap().tasks.remove(0)
}

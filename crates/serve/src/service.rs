//! Routes: which request is answered by what.

use crate::{
    Gate, Refusal, Voice, api,
    asked::{self, Asked, Input},
    body::{Body, event, json, refused, response},
    fields::Fields,
    gate::Labeler,
    pages::page,
    people::{Keeping, People},
    talk::{Piece, Stream, Talk},
    writing::Writing,
    written::{Frame, Shape},
};
use http_body_util::{BodyExt, Limited};
use hyper::{
    HeaderMap, Method, Request, Response,
    body::{Bytes, Incoming},
    header::{self, HeaderName, HeaderValue},
};
use instruct_feedback::{Answer, Submission};
use instruct_random::Source;
use serde_json::{Value, json as value};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};
use tokio::{
    select,
    sync::{Semaphore, mpsc},
    task::spawn_blocking,
    time::timeout,
};

/// Bytes that a request may have.
const BODY_BYTES: usize = 1 << 20;
/// How long a client may take to send a request, or leave what was written for it unread.
const PATIENCE: Duration = Duration::from_secs(30);
/// Texts that are scored at a time.
const SCORED: usize = 256;
/// Requests for scores that may be under way, running or waiting for a thread.
const SCORING: usize = 8;

/// Scores texts, each the whole of a prompt and its answer, `(n,)`. Its error is told to the client.
pub type Reward = Arc<dyn Fn(&[String]) -> Result<Vec<f32>, String> + Send + Sync>;

/// What only the program around this crate has.
#[derive(Clone)]
pub struct Handed {
    /// The second since 1970.
    pub second: Arc<dyn Fn() -> u64 + Send + Sync>,
    /// A number that no other start of a server has: it keys names and seeds.
    pub chance: u64,
    /// The reward model, if there is one.
    pub reward: Option<Reward>,
}

/// A model, and who may ask it.
pub struct Service {
    voice: Arc<Voice>,
    talk: Talk,
    gate: Gate,
    people: Option<People>,
    handed: Handed,
    /// Requests for scores that may be under way.
    scoring: Arc<Semaphore>,
    numbers: AtomicU64,
    refused: AtomicU64,
}

/// What a request that asks for text came with.
struct Wanted {
    asked: Asked,
    frame: Frame,
    stream: Stream,
    writing: Writing,
    keeping: Option<Keeping>,
}

impl Service {
    /// Starts the model's thread, which ends when the service is dropped. So many answers may wait for a slot. Without
    /// `people` there are no pages, and nobody is asked anything.
    pub fn new(
        voice: Voice,
        gate: Gate,
        people: Option<People>,
        queue: usize,
        handed: Handed,
    ) -> (Service, JoinHandle<()>) {
        let (talk, thread) = Talk::start(voice.decoder.clone(), voice.room, queue);
        let (numbers, refused) = Default::default();
        let scoring = Arc::new(Semaphore::new(SCORING));
        (Service { voice: Arc::new(voice), talk, gate, people, handed, scoring, numbers, refused }, thread)
    }

    /// The response to a request.
    pub(crate) async fn respond(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        match self.route(request).await {
            Ok(response) => response,
            Err(refusal) => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                refused(&refusal)
            }
        }
    }

    async fn route(&self, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
        let (parts, body) = request.into_parts();
        let (method, path, headers) = (parts.method, parts.uri.path(), parts.headers);
        self.gate.check_origin(&method, &headers)?;
        let is_known = GETS.contains(&path) || POSTS.contains(&path) || page(path).is_some();
        match method {
            Method::GET if is_known && !POSTS.contains(&path) || path == "/api/session" => {
                self.get(path, &headers).await
            }
            Method::POST if POSTS.contains(&path) => {
                Gate::check_json(&headers)?;
                self.post(path, &headers, body).await
            }
            _ if is_known => Err(Refusal::new(405, format!("{path} is asked with another method"))),
            _ => Err(Refusal::new(404, format!("there is nothing at {path}"))),
        }
    }

    async fn get(&self, path: &str, headers: &HeaderMap) -> Result<Response<Body>, Refusal> {
        if let Some((kind, content)) = page(path) {
            self.people()?;
            return Ok(response(200, kind, Body::Whole(Some(Bytes::from_static(content.as_bytes())))));
        }
        match path {
            "/" => self.people().map(|_| to_chat()),
            "/healthz" => Ok(json(200, &value!({ "status": "ok" }))),
            "/metrics" => Ok(text("text/plain; version=0.0.4", self.metrics())),
            "/v1/models" => self.gate.check_key(headers).map(|()| json(200, &self.models())),
            _ => self.get_api(path, headers).await,
        }
    }

    /// What pages read.
    async fn get_api(&self, path: &str, headers: &HeaderMap) -> Result<Response<Body>, Refusal> {
        let labeler = self.gate.check_labeler(headers)?;
        let people = self.people()?;
        people.pace(&labeler.id, (self.handed.second)())?;
        match path {
            "/api/session" => Ok(json(200, &api::session(labeler, people, &self.voice.name))),
            "/api/guidelines" => Ok(json(200, &value!({ "markdown": people.guidelines }))),
            "/api/progress" => Ok(json(200, &api::progressed(&people.desk, labeler).await?)),
            _ if labeler.is_admin => Ok(text("application/jsonl", api::exported(&people.desk).await?)),
            _ => Err(Refusal::new(403, "only an admin may take the records out")),
        }
    }

    async fn post(&self, path: &str, headers: &HeaderMap, body: Incoming) -> Result<Response<Body>, Refusal> {
        if path.starts_with("/api/") {
            return self.post_api(path, headers, body).await;
        }
        self.gate.check_key(headers)?;
        let body = read(body).await?;
        let labeler = self.gate.labeler(headers);
        match path {
            "/v1/chat/completions" => self.complete(Shape::Chat, asked::chat(&body)?, labeler).await,
            "/v1/completions" => self.complete(Shape::Text, asked::completions(&body)?, None).await,
            _ => self.score(&body).await,
        }
    }

    /// What pages send.
    async fn post_api(&self, path: &str, headers: &HeaderMap, body: Incoming) -> Result<Response<Body>, Refusal> {
        let (people, now) = (self.people()?, (self.handed.second)());
        if path == "/api/session" {
            return self.open_session(people, headers, &read(body).await?, now);
        }
        let labeler = self.gate.check_labeler(headers)?;
        people.pace(&labeler.id, now)?;
        let body = read(body).await?;
        match path {
            "/api/task/next" => Ok(json(200, &api::next(&people.desk, labeler, now, &body).await?)),
            "/api/feedback" => self.say(people, labeler, api::feedback(&body)?).await,
            _ => self.say(people, labeler, api::retraction(&body)?).await,
        }
    }

    fn people(&self) -> Result<&People, Refusal> {
        self.people.as_ref().ok_or_else(|| Refusal::new(404, "this server asks nobody; start it with --feedback"))
    }

    fn open_session(
        &self,
        people: &People,
        headers: &HeaderMap,
        body: &[u8],
        now: u64,
    ) -> Result<Response<Body>, Refusal> {
        let token = api::token(body)?;
        let Some(labeler) = self.gate.of_token(&token) else {
            // Whoever has a link is not kept out by those who guess.
            people.pace("", now)?;
            let message = "this link is not known here; ask whoever runs the server for a new one";
            return Err(Refusal::new(401, message).with_code("unknown_token"));
        };
        let mut response = json(200, &api::session(labeler, people, &self.voice.name));
        response.headers_mut().insert(header::SET_COOKIE, api::cookie(headers, &token)?);
        Ok(response)
    }

    async fn say(&self, people: &People, labeler: &Labeler, submission: Submission) -> Result<Response<Body>, Refusal> {
        people.wait_for(&api::answers(&submission.said)).await;
        let event = submission.event(&labeler.id, (self.handed.second)());
        Ok(json(200, &people.desk.say(event).await?))
    }

    /// The models, in OpenAI's shape.
    fn models(&self) -> Value {
        let Voice { name, precision, room, .. } = &*self.voice;
        let most = room.capacity.min(self.voice.decoder.config().context);
        value!({ "object": "list", "data": [{
            "id": name, "object": "model", "created": 0, "owned_by": "instruct",
            "context": most, "precision": precision,
        }] })
    }

    /// Counts for Prometheus. No text and no name of a person is among them.
    fn metrics(&self) -> String {
        let counts = self.talk.counts();
        let rows = [
            ("requests_total", "counter", self.numbers.load(Ordering::Relaxed)),
            ("refused_total", "counter", self.refused.load(Ordering::Relaxed)),
            ("tokens_drawn_total", "counter", counts.drawn),
            ("tokens_computed_total", "counter", counts.computed),
            ("tokens_continued_total", "counter", counts.continued),
            ("sequences_running", "gauge", counts.running as u64),
            ("sequences_waiting", "gauge", counts.waiting as u64),
        ];
        rows.map(|(name, kind, count)| format!("# TYPE instruct_{name} {kind}\ninstruct_{name} {count}\n")).concat()
    }

    async fn complete(&self, shape: Shape, asked: Asked, labeler: Option<&Labeler>) -> Result<Response<Body>, Refusal> {
        let ignored = asked.ignored.clone();
        let wanted = self.wanted(shape, asked, labeler).await?;
        let mut response = if wanted.asked.stream {
            let (to, parts) = mpsc::channel(1);
            tokio::spawn(stream(self.voice.clone(), wanted, to));
            response(200, "text/event-stream", Body::Parts(parts))
        } else {
            whole(&self.voice, wanted).await?
        };
        if let Some(names) = header_of(&ignored) {
            response.headers_mut().insert(HeaderName::from_static("x-ignored"), names);
        }
        Ok(response)
    }

    /// Hands the tickets of a request to the model's thread.
    async fn wanted(&self, shape: Shape, asked: Asked, labeler: Option<&Labeler>) -> Result<Wanted, Refusal> {
        self.check_model(asked.model.as_deref())?;
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let mut names = Source::new(self.handed.chance, "serve/names").at([number]);
        // Below 2^53, so that a client that reads numbers as JavaScript does sends the same one back.
        let (name, seed) = (names.u64(), asked.seed.unwrap_or(names.u64() >> 11));
        let voice = self.voice.clone();
        // A long conversation takes a while to encode, and others want to be served meanwhile.
        let encoded = spawn_blocking(move || voice.tickets(&asked, seed).map(|tickets| (asked, tickets)));
        let (asked, (tickets, tokens)) =
            encoded.await.map_err(|why| Refusal::new(500, format!("the request was not encoded: {why}")))??;
        let choices = tickets.len();
        let frame = Frame {
            shape,
            id: format!("{}-{name:016x}", if shape == Shape::Chat { "chatcmpl" } else { "cmpl" }),
            created: (self.handed.second)(),
            model: self.voice.name.clone(),
            answers: (0..choices).map(|choice| format!("a-{name:016x}-{choice}")).collect(),
            seed,
        };
        let writing = Writing::new(shape, choices, tokens, &asked.stop, asked.logprobs.is_some());
        let stream = self.talk.draw(number, tickets)?;
        let keeping = labeler.and_then(|labeler| self.keeping(labeler, &frame, &asked.input));
        Ok(Wanted { stream, asked, frame, writing, keeping })
    }

    /// What is kept of the answers to a person in the chat, if anything is.
    fn keeping(&self, labeler: &Labeler, frame: &Frame, input: &Input) -> Option<Keeping> {
        let people = self.people.as_ref().filter(|people| people.keeps_answers)?;
        let Input::Chat(conversation) = input else { return None };
        let answer = |id: &String| Answer {
            id: id.clone(),
            model: frame.model.clone(),
            messages: conversation.messages.clone(),
            text: String::new(),
            seed: frame.seed,
            labeler: labeler.id.clone(),
            consent: true,
        };
        let answers = frame.answers.iter().map(answer).collect();
        Some(Keeping { desk: people.desk.clone(), answers, _mark: people.mark(&frame.answers) })
    }

    fn check_model(&self, name: Option<&str>) -> Result<(), Refusal> {
        match name {
            Some(name) if name != self.voice.name => {
                let message = format!("there is no model `{name}` here; the one there is, is `{}`", self.voice.name);
                Err(Refusal { param: Some("model".to_owned()), ..Refusal::new(404, message) }
                    .with_code("model_not_found"))
            }
            _ => Ok(()),
        }
    }

    /// Scores of texts, in the shape of OpenRLHF's reward server.
    async fn score(&self, body: &[u8]) -> Result<Response<Body>, Refusal> {
        let Some(reward) = self.handed.reward.clone() else {
            return Err(Refusal::new(404, "no reward model is served; serve a run that has one"));
        };
        let texts = Fields::of(body)?.strings("query", SCORED)?;
        if texts.is_empty() {
            return Err(Refusal::of_field("query", "`query` must be a list of at least one text"));
        }
        // Work that has begun goes on when its client has gone, so it is the work that is counted.
        let busy = |_| Refusal { retry_after: Some(1), ..Refusal::busy("too many texts are being scored") };
        let place = self.scoring.clone().try_acquire_owned().map_err(busy)?;
        let scored = move || {
            let _place = place;
            reward(&texts)
        };
        let scores = spawn_blocking(scored).await;
        let scores = scores.map_err(|why| why.to_string()).flatten().map_err(|why| Refusal::of_field("query", why))?;
        Ok(json(200, &value!({ "rewards": scores, "scores": scores, "extra_logs": {} })))
    }
}

const GETS: [&str; 8] = [
    "/",
    "/healthz",
    "/metrics",
    "/v1/models",
    "/api/session",
    "/api/guidelines",
    "/api/progress",
    "/api/export.jsonl",
];
const POSTS: [&str; 7] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/get_reward",
    "/api/session",
    "/api/task/next",
    "/api/feedback",
    "/api/retract",
];

fn text(kind: &'static str, text: String) -> Response<Body> {
    response(200, kind, Body::Whole(Some(text.into())))
}

fn to_chat() -> Response<Body> {
    let mut response = response(303, "text/plain; charset=utf-8", Body::Whole(Some(Bytes::from_static(b"see /chat"))));
    response.headers_mut().insert(header::LOCATION, HeaderValue::from_static("/chat"));
    response
}

async fn read(body: Incoming) -> Result<Bytes, Refusal> {
    let whole = timeout(PATIENCE, Limited::new(body, BODY_BYTES).collect()).await;
    let whole = whole.map_err(|_| Refusal::new(408, "the body did not come within 30 seconds"))?;
    let too_long = || Refusal::new(413, format!("the body is longer than {BODY_BYTES} bytes, or it was cut off"));
    Ok(whole.map_err(|_| too_long())?.to_bytes())
}

async fn whole(voice: &Voice, wanted: Wanted) -> Result<Response<Body>, Refusal> {
    let Wanted { frame, mut stream, mut writing, keeping, .. } = wanted;
    while !writing.is_whole() {
        let piece = next(&mut stream).await?;
        if let Some(part) = writing.hear(voice, piece)?
            && part.is_cut
        {
            stream.cancel(part.choice);
        }
    }
    if let Some(keeping) = keeping {
        keeping.keep(writing.texts()).await;
    }
    let usage = writing.usage();
    Ok(json(200, &frame.whole(&writing.into_whole(), usage)))
}

/// Writes the parts of a response until it is whole, or nobody reads them any more. What was written by then is kept
/// before the last part, so that the client can say something of it.
async fn stream(voice: Arc<Voice>, mut wanted: Wanted, to: mpsc::Sender<Bytes>) {
    let written = write(&voice, &mut wanted, &to).await;
    if let Some(keeping) = wanted.keeping {
        keeping.keep(wanted.writing.texts()).await;
    }
    // A client that is gone or does not read has been told all that it will be.
    if written.is_ok() {
        let _ = send(&to, Bytes::from_static(b"data: [DONE]\n\n")).await;
    }
}

/// Nobody reads on, or there is nothing more to read.
struct Gone;

async fn write(voice: &Voice, wanted: &mut Wanted, to: &mpsc::Sender<Bytes>) -> Result<(), Gone> {
    let Wanted { asked, frame, stream, writing, .. } = wanted;
    for opening in (0..frame.answers.len()).filter_map(|choice| frame.opening(choice)) {
        send(to, event(&opening)).await?;
    }
    while !writing.is_whole() {
        // Who has gone frees a place also before anything was drawn for it.
        let piece = select! {
            piece = next(stream) => piece,
            () = to.closed() => return Err(Gone),
        };
        let part = match piece.and_then(|piece| writing.hear(voice, piece)) {
            Ok(Some(part)) => part,
            Ok(None) => continue,
            // The response has begun, so that its status cannot say this any more.
            Err(refusal) => return send(to, event(&refusal.body())).await.and(Err(Gone)),
        };
        if part.is_cut {
            stream.cancel(part.choice);
        }
        if !part.text.is_empty() || part.told.is_some() || part.finish.is_some() {
            let told = part.told.as_ref().map(std::slice::from_ref);
            send(to, event(&frame.part(part.choice, &part.text, told, part.finish))).await?;
        }
    }
    if asked.include_usage {
        send(to, event(&frame.usage(writing.usage()))).await?;
    }
    Ok(())
}

async fn next(stream: &mut Stream) -> Result<Piece, Refusal> {
    match stream.next().await {
        Some(Ok(piece)) => Ok(piece),
        Some(Err(why)) => Err(Refusal::new(500, why)),
        None => Err(Refusal::new(500, "the model's thread has ended; start the server again")),
    }
}

async fn send(to: &mpsc::Sender<Bytes>, bytes: Bytes) -> Result<(), Gone> {
    timeout(PATIENCE, to.send(bytes)).await.map_err(|_| Gone)?.map_err(|_| Gone)
}

/// Names of fields as a header, as far as they can stand in one.
fn header_of(names: &[String]) -> Option<HeaderValue> {
    let is_plain = |name: &&String| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
    let names: Vec<&str> = names.iter().filter(is_plain).take(16).map(String::as_str).collect();
    (!names.is_empty()).then(|| HeaderValue::from_str(&names.join(", ")).ok()).flatten()
}

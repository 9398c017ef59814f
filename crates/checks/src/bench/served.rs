//! How fast a server answers several clients at once, over HTTP and beside llama.cpp's.
//!
//! Both servers are asked the same: every client sends one prompt after the other, each with words of its own, and reads
//! a streamed text of at most so many tokens. What is counted is what the servers say that they wrote. What HTTP costs
//! is the difference from the same engine, which writes the same answers in this process.

use super::{ModelSettings, submitted};
use anyhow::{Context, Result, bail, ensure};
use candle_core::Device;
use instruct_kernels::kept_awake;
use instruct_model::{Engine, Request, Room, Sampling, Ticket};
use instruct_random::Source;
use serde::Serialize;
use serde_json::{Value, json};
use std::{
    fmt::Write as _,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    ops::Range,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread::{self, sleep},
    time::{Duration, Instant},
};
use xtask::{
    config::Precision,
    machine::cpu_model,
    prepare::{Wording, open_base, open_decoder},
    terminal::{print, say},
    write_whole,
};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Measure this program's server on a model of the SmolLM2-135M shape: a .gguf file or a folder
    #[arg(long = "serve", value_name = "MODEL", conflicts_with_all = ["memory", "peer", "sweeps", "prepare", "json", "ranks", "line", "shape", "stage"])]
    pub(super) model: Option<PathBuf>,
    /// llama.cpp's server, to be measured on the files of --llama-model, taking turns
    #[arg(long, value_name = "PROGRAM", requires = "llama_model")]
    llama_server: Option<PathBuf>,
    /// A .gguf file for llama.cpp's server; several are measured one after the other
    #[arg(long, value_name = "FILE", requires = "llama_server")]
    llama_model: Vec<PathBuf>,
    /// Clients at a time
    #[arg(long, value_name = "CLIENTS", default_values_t = [1, 8, 32], requires = "model")]
    streams: Vec<usize>,
    /// Answers that each client reads in one turn
    #[arg(long, value_name = "ANSWERS", default_value_t = 3, requires = "model")]
    answers: usize,
    /// Then let so many people submit what they wrote, and say how much of it is saved in a second
    #[arg(long, value_name = "PEOPLE", default_value_t = 0, requires = "model")]
    people: usize,
    /// Then let the most clients ask for so many minutes, and say each minute what the server holds
    #[arg(long, value_name = "MINUTES", default_value_t = 0, requires = "model")]
    soak: u64,
}

/// Tokens of an answer at most, and words of a prompt.
const TOKENS: usize = 128;
const WORDS: usize = 48;
/// Tokens that a prompt and its answer may have.
const CAPACITY: usize = 512;

/// What one server did under so many clients.
#[derive(Clone, Debug, Serialize)]
struct Measured {
    server: String,
    streams: usize,
    /// Tokens that all clients together were given in a second.
    rate: f64,
    /// Milliseconds to the first piece of an answer: the median, and the 95th percentile.
    first: [f64; 2],
    /// Milliseconds between two pieces of an answer: the median, and the 99th percentile.
    gap: [f64; 2],
    /// Of all answers together, and how many answers there were.
    tokens: usize,
    answers: usize,
}

/// What one answer took. A model that ends at once writes no piece of text, so that nothing is first.
struct Answer {
    tokens: usize,
    first: Option<Duration>,
    gaps: Vec<Duration>,
}

/// A server under measurement.
struct Served {
    name: String,
    child: Child,
    at: String,
}

pub(super) fn run(args: &Args, settings: ModelSettings, rounds: usize, out: Option<&Path>) -> Result<()> {
    let model = args.model.as_deref().context("--serve names a model")?;
    let program = crate::process::program(&crate::process::root()?)?;
    let mut all = Vec::new();
    for round in 1..=rounds {
        for &streams in &args.streams {
            say(&format!("{streams} clients: round {round} of {rounds}"));
            for file in &args.llama_model {
                let server = args.llama_server.as_deref().context("--llama-model is given with --llama-server")?;
                all.push(Served::llama(server, file, streams)?.measure(streams, args.answers)?);
            }
            let served = Served::ours(&program, model, settings.precision, streams)?.measure(streams, args.answers)?;
            let here = without_http(model, settings.precision, streams, args.answers)?;
            ensure!(served.tokens == here.tokens, "{} tokens over HTTP, {} without", served.tokens, here.tokens);
            all.extend([served, here]);
        }
    }
    let mut text = table(&all);
    if args.people > 0 {
        text += &submitted::rate(&program, model, args.people)?;
    }
    if args.soak > 0 {
        let streams = args.streams.iter().copied().max().context("there are clients")?;
        text += &soak(Served::ours(&program, model, settings.precision, streams)?, streams, args.soak)?;
    }
    print(&text);
    let Some(out) = out else { return Ok(()) };
    fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    write_whole(&out.join("results.json"), (serde_json::to_string_pretty(&all)? + "\n").as_bytes())?;
    write_whole(&out.join("table.txt"), text.as_bytes())
}

fn table(all: &[Measured]) -> String {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let mut text = format!(
        "{}, {threads} threads; prompts of {WORDS} words, answers of at most {TOKENS} tokens\n\
         {:<34} {:>7} {:>9} {:>12} {:>17} {:>17}\n",
        cpu_model(),
        "server",
        "clients",
        "tokens/s",
        "tokens each",
        "first p50/p95 ms",
        "gap p50/p99 ms"
    );
    for Measured { server, streams, rate, first, gap, tokens, answers } in all {
        let each = *tokens as f64 / *answers as f64;
        let pair = |of: &[f64; 2]| format!("{:.0} / {:.0}", of[0], of[1]);
        let (first, gap) = (pair(first), pair(gap));
        let _ = writeln!(text, "{server:<34} {streams:>7} {rate:>9.1} {each:>12.1} {first:>17} {gap:>17}");
    }
    text
}

/// What the engine does without HTTP: each client's next prompt is submitted when its last answer is written.
fn without_http(model: &Path, precision: Precision, streams: usize, answers: usize) -> Result<Measured> {
    let wording = Wording { template: "", option: "--template", date: None };
    let renderer = open_base(model, wording, &Device::Cpu)?.renderer;
    let decoder = open_decoder(model, &Device::Cpu, precision)?.1;
    let sampling = Arc::new(Sampling::plain(renderer.stops().clone(), TOKENS));
    let mut engine = Engine::new(&decoder, Room::for_serving(streams, CAPACITY))?;
    let submit = |engine: &mut Engine<'_>, client: u64, number: u64| -> Result<Waiting> {
        let prompt = renderer.tokenizer().encode_prompt(&prompt(client, number))?;
        let request = Request { episode: 0, prompt };
        // The server's draws, so that the answers are the same.
        let source = Source::new(client, "generate");
        let ticket = engine.submit(Ticket::new(request, sampling.clone(), source))?;
        Ok(Waiting { ticket, client, number, begun: Instant::now(), times: Vec::new() })
    };
    // One that is not counted, as for the servers.
    let mut turn = |numbers: Range<u64>| -> Result<Vec<Answer>> {
        let clients = 0..streams as u64;
        let mut waiting: Vec<Waiting> =
            clients.map(|client| submit(&mut engine, client, numbers.start)).collect::<Result<_>>()?;
        let mut read = Vec::new();
        while !engine.is_idle() {
            for emitted in kept_awake(|| engine.step())? {
                let at = waiting.iter().position(|asked| asked.ticket == emitted.ticket);
                let at = at.context("a ticket is a client's")?;
                let asked = &mut waiting[at];
                asked.times.push(asked.begun.elapsed());
                if emitted.end.is_some() {
                    let Waiting { client, number, times, .. } = waiting.swap_remove(at);
                    read.push(Answer::of(times.len(), &times));
                    if number + 1 < numbers.end {
                        waiting.push(submit(&mut engine, client, number + 1)?);
                    }
                }
            }
        }
        Ok(read)
    };
    turn(u64::MAX - 1..u64::MAX)?;
    let begun = Instant::now();
    let read = turn(0..answers as u64)?;
    Measured::of(format!("no HTTP {precision}"), streams, &read, begun.elapsed())
}

/// A prompt that the engine is at, and when its tokens came.
struct Waiting {
    ticket: u64,
    client: u64,
    number: u64,
    begun: Instant,
    times: Vec<Duration>,
}

impl Answer {
    /// An answer of so many tokens, whose pieces came at these times.
    fn of(tokens: usize, times: &[Duration]) -> Answer {
        let gaps = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        Answer { tokens, first: times.first().copied(), gaps }
    }
}

impl Measured {
    fn of(server: String, streams: usize, read: &[Answer], took: Duration) -> Result<Measured> {
        let tokens = read.iter().map(|answer| answer.tokens).sum();
        let first: Vec<Duration> = read.iter().filter_map(|answer| answer.first).collect();
        ensure!(2 * first.len() > read.len(), "{server} answered {} of {} prompts", first.len(), read.len());
        let gaps = read.iter().flat_map(|answer| answer.gaps.iter().copied()).collect();
        let (first, gap) = (percentiles(first, 0.95), percentiles(gaps, 0.99));
        Ok(Measured {
            server,
            streams,
            rate: tokens as f64 / took.as_secs_f64(),
            first,
            gap,
            tokens,
            answers: read.len(),
        })
    }
}

impl Served {
    fn ours(program: &Path, model: &Path, precision: Precision, streams: usize) -> Result<Served> {
        let mut command = Command::new(program);
        command.arg("serve").arg(model).args([
            "--port",
            "0",
            "--capacity",
            &CAPACITY.to_string(),
            "--precision",
            &precision.to_string(),
        ]);
        command.args(["--slots", &streams.to_string()]);
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().context("no server")?;
        let mut lines = BufReader::new(child.stderr.take().context("its messages are read")?).lines();
        let found = lines.find_map(|line| Some(line.ok()?.split_once("for programs: http://")?.1.to_owned()));
        thread::spawn(move || lines.for_each(drop));
        let at = found.context("the server ended before it said where it is")?;
        let at = at.split('/').next().unwrap_or_default().to_owned();
        Ok(Served { name: format!("instruct serve {precision}"), child, at })
    }

    /// With a cache as long as ours for each client, and as many threads.
    fn llama(program: &Path, file: &Path, streams: usize) -> Result<Served> {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let threads = thread::available_parallelism()?.to_string();
        let mut command = Command::new(program);
        command.arg("--model").arg(file).args(["--port", &port.to_string(), "--parallel", &streams.to_string()]);
        command.args([
            "--ctx-size",
            &(CAPACITY * streams).to_string(),
            "--threads",
            &threads,
            "--threads-batch",
            &threads,
        ]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let name = file.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let mut served = Served { name: format!("llama-server {name}"), child, at: format!("127.0.0.1:{port}") };
        while !served.is_ready() {
            if let Some(status) = served.child.try_wait()? {
                bail!("{} ended with {status}", program.display());
            }
            sleep(Duration::from_millis(100));
        }
        Ok(served)
    }

    fn is_ready(&self) -> bool {
        let asked = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect(&self.at)?;
            write!(stream, "GET /health HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.at)?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        asked().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
    }

    /// Each client reads so many answers, after one that is not counted.
    fn measure(self, streams: usize, answers: usize) -> Result<Measured> {
        self.under(streams, |client| self.answer(client, u64::MAX).map(drop))?;
        let begun = Instant::now();
        let read: Vec<Vec<Answer>> =
            self.under(streams, |client| (0..answers as u64).map(|number| self.answer(client, number)).collect())?;
        let took = begun.elapsed();
        let read: Vec<Answer> = read.into_iter().flatten().collect();
        Measured::of(self.name.clone(), streams, &read, took)
    }

    /// What `work` gives for each client, all of them at once.
    fn under<T: Send>(&self, streams: usize, work: impl Fn(u64) -> Result<T> + Sync) -> Result<Vec<T>> {
        thread::scope(|scope| {
            let work = &work;
            let clients: Vec<_> = (0..streams as u64).map(|client| scope.spawn(move || work(client))).collect();
            clients.into_iter().map(|client| client.join().map_err(|_| anyhow::anyhow!("a client panicked"))?).collect()
        })
    }

    /// One streamed answer.
    fn answer(&self, client: u64, number: u64) -> Result<Answer> {
        let body = json!({ "prompt": prompt(client, number), "stream": true, "max_tokens": TOKENS, "temperature": 1,
            "top_k": 0, "top_p": 1, "min_p": 0,
            "seed": client, "stream_options": { "include_usage": true } });
        let body = body.to_string();
        let begun = Instant::now();
        let mut stream = TcpStream::connect(&self.at)?;
        stream.set_nodelay(true)?;
        write!(
            stream,
            "POST /v1/completions HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{body}",
            self.at,
            body.len()
        )?;
        let mut events = Events::of(BufReader::new(stream))?;
        let (mut tokens, mut times) = (0, Vec::new());
        while let Some(event) = events.next()? {
            ensure!(event["error"].is_null(), "{} failed: {}", self.name, event["error"]);
            if event["choices"][0]["text"].as_str().is_some_and(|text| !text.is_empty()) {
                times.push(begun.elapsed());
            }
            if let Some(written) = event["usage"]["completion_tokens"].as_u64() {
                tokens = written as usize;
            }
        }
        ensure!(tokens > 0 || times.is_empty(), "{} does not say how many tokens it wrote", self.name);
        Ok(Answer::of(tokens, &times))
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It is not needed any more, whatever becomes of it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The events of a streamed answer.
struct Events<R> {
    body: Chunked<R>,
}

impl<R: BufRead> Events<R> {
    /// Reads the head of an answer.
    ///
    /// Errors: it is no answer that was asked for.
    fn of(mut stream: R) -> Result<Events<R>> {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        ensure!(line.starts_with("HTTP/1.1 200"), "{}", line.trim());
        let mut is_chunked = false;
        loop {
            line.clear();
            stream.read_line(&mut line)?;
            is_chunked |= line.to_ascii_lowercase().starts_with("transfer-encoding: chunked");
            if line.trim().is_empty() {
                ensure!(is_chunked, "a streamed answer comes in chunks");
                return Ok(Events { body: Chunked { stream, kept: Vec::new() } });
            }
        }
    }

    /// The next event; none behind the last.
    fn next(&mut self) -> Result<Option<Value>> {
        while let Some(line) = self.body.line()? {
            match line.strip_prefix("data: ") {
                Some("[DONE]") => return Ok(None),
                Some(event) => return Ok(Some(serde_json::from_str(event)?)),
                None => {}
            }
        }
        Ok(None)
    }
}

/// A body that comes in chunks, read by lines.
struct Chunked<R> {
    stream: R,
    kept: Vec<u8>,
}

impl<R: BufRead> Chunked<R> {
    fn line(&mut self) -> Result<Option<String>> {
        loop {
            if let Some(end) = self.kept.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.kept.drain(..=end).collect();
                return Ok(Some(String::from_utf8(line)?.trim().to_owned()));
            }
            let mut size = String::new();
            self.stream.read_line(&mut size)?;
            let bytes = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
            if bytes == 0 {
                return Ok(None);
            }
            let begun = self.kept.len();
            self.kept.resize(begun + bytes, 0);
            self.stream.read_exact(&mut self.kept[begun..])?;
            let mut end = [0; 2];
            self.stream.read_exact(&mut end)?;
        }
    }
}

/// Words that no other answer is asked for.
fn prompt(client: u64, number: u64) -> String {
    const WORDS_KNOWN: [&str; 16] = [
        "river", "stone", "about", "green", "seven", "night", "under", "story", "walks", "small", "house", "bread",
        "light", "water", "other", "tells",
    ];
    let mut draws = Source::new(1, "bench/served").at([client, number]);
    let words: Vec<&str> = (0..WORDS).filter_map(|_| draws.pick(&WORDS_KNOWN).copied()).collect();
    format!("Write a long story with these words: {}.", words.join(" "))
}

/// The median, and the value that a share of all does not exceed, in milliseconds.
fn percentiles(mut of: Vec<Duration>, share: f64) -> [f64; 2] {
    of.sort_unstable();
    let at = |share: f64| of.get(((of.len() as f64 * share) as usize).min(of.len().saturating_sub(1)));
    [0.5, share].map(|share| at(share).map_or(f64::NAN, |time| 1e3 * time.as_secs_f64()))
}

/// Clients ask without a pause; what the server holds each minute.
fn soak(served: Served, streams: usize, minutes: u64) -> Result<String> {
    let until = Instant::now() + Duration::from_secs(60 * minutes);
    let (served, mut text) = (&served, format!("{streams} clients without a pause:\n"));
    thread::scope(|scope| -> Result<()> {
        let clients = scope.spawn(move || {
            served.under(streams, |client| {
                let asked = (0..).take_while(|_| Instant::now() < until);
                asked.map(|number| served.answer(client, number).map(|answer| answer.tokens)).sum::<Result<usize>>()
            })
        });
        for minute in 0..=minutes {
            let _ = writeln!(text, "  after {minute} minutes: {:.0} MB", held_mb(served.child.id())?);
            sleep(Duration::from_secs(if minute < minutes { 60 } else { 0 }));
        }
        let tokens: usize = clients.join().map_err(|_| anyhow::anyhow!("a client panicked"))??.into_iter().sum();
        let _ = writeln!(text, "  {tokens} tokens in all");
        Ok(())
    })?;
    Ok(text)
}

/// What a process holds now, in megabytes of 2^20 bytes.
fn held_mb(process: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).context("the server is gone")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("the system does not say")?;
    let kilobytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_wherever_chunks_end() {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let body = "data: {\"a\":1}\n\ndata: {\"a\":2}\n\ndata: [DONE]\n\n";
        for size in 1..body.len() {
            let chunks: String = body
                .as_bytes()
                .chunks(size)
                .map(|part| format!("{:x}\r\n{}\r\n", part.len(), String::from_utf8_lossy(part)))
                .collect();
            let answer = format!("{head}{chunks}0\r\n\r\n");
            let mut events = Events::of(answer.as_bytes()).unwrap();
            let read = [events.next().unwrap(), events.next().unwrap(), events.next().unwrap()];
            assert_eq!(read, [Some(json!({ "a": 1 })), Some(json!({ "a": 2 })), None], "chunks of {size}");
        }
        assert!(Events::of("HTTP/1.1 429 Too Many\r\n\r\n".as_bytes()).is_err());
    }

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let of = |values: &[u64]| values.iter().map(|value| Duration::from_millis(*value)).collect::<Vec<_>>();
        assert_eq!(percentiles(of(&(1..=100).collect::<Vec<_>>()), 0.95), [51.0, 96.0]);
        assert_eq!(percentiles(of(&[7]), 0.99), [7.0, 7.0]);
        assert!(percentiles(Vec::new(), 0.5)[0].is_nan());
    }
}

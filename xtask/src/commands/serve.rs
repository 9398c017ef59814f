//! `serve`: a model answers over HTTP.

use super::opening::Opening;
use std::{net::IpAddr, path::PathBuf};

pub(crate) const EXAMPLES: &str = "Examples:
  instruct serve runs/0001                           the ppo-ptx of a run, at http://127.0.0.1:8080/v1
  instruct serve MODEL.gguf --precision bf16 --port 9000
  instruct serve runs/0001 --listen 0.0.0.0 --host models.example --api-keys keys.txt";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run folder, model folder or .gguf file
    target: PathBuf,
    /// Which model of a run
    #[arg(long, default_value = "ppo-ptx")]
    artefact: String,
    /// Where to listen; 0 takes a port that is free
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Address to listen at; another than this machine's own needs --api-keys or named labelers
    #[arg(long, default_value = "127.0.0.1")]
    listen: IpAddr,
    /// A further name by which this server is called, without its port
    #[arg(long)]
    host: Vec<String>,
    /// File with a key for programs on each line; without one, every program on this machine may ask
    #[arg(long)]
    api_keys: Option<PathBuf>,
    /// Folder of feedback; without one, that of the run
    #[arg(long)]
    feedback: Option<PathBuf>,
    /// Keep no answer of the chat, so that nothing can be said of them
    #[arg(long)]
    keep_nothing: bool,
    /// Answers written at a time; changes speed and memory, never the text
    #[arg(long, default_value_t = 32)]
    slots: usize,
    /// Tokens that a conversation and its answer may have; without it, the model's context, 2,048 at most
    #[arg(long)]
    capacity: Option<usize>,
    /// Answers that may wait for a slot; more are told to come again
    #[arg(long, default_value_t = 64)]
    queue: usize,
    #[command(flatten)]
    opening: Opening,
}

#[cfg(not(feature = "serve"))]
pub(crate) use without::run;

#[cfg(feature = "serve")]
pub(crate) use with::run;

/// The program that `cargo xtask` builds has no server, so that the flow is compiled without one.
#[cfg(not(feature = "serve"))]
mod without {
    use super::Args;
    use crate::{cli::cargo, terminal::say};
    use anyhow::{Result, bail};

    /// Has cargo build the program with the server, and runs that one.
    pub(crate) fn run(_: &Args) -> Result<()> {
        let Some(mut program) = cargo("xtask") else {
            bail!(
                "this program was built without its server; install it with the feature `serve`, which is the default"
            );
        };
        say("building the server; the first time takes a minute or two");
        program.arg("--").args(std::env::args_os().skip(1));
        crate::cli::become_it(program)
    }
}

#[cfg(feature = "serve")]
mod with {
    use super::Args;
    use crate::{
        desk::{Folder, LOCAL_LABELER, Role, digest_of},
        memory::{Machine, mega},
        prepare::{available, device, open_decoder},
        terminal::say,
    };
    use anyhow::{Context, Result, bail};
    use instruct_data::{Tokenizer, read_text};
    use instruct_feedback::{Settings, State, TaskKind};
    use instruct_model::{
        Config as Description, Decoder, HeadKind, Room,
        memory::{Buffers, Estimate, Phase, Readout, cached, inferred},
    };
    use instruct_reward_model::{Item, scores};
    use instruct_serve::{Gate, Handed, Labeler, People, Reward, Service, Voice, digest, serve, stopper};
    use std::{
        net::{SocketAddr, TcpListener},
        path::{Path, PathBuf},
        sync::{Arc, Mutex},
        time::SystemTime,
    };

    /// What a conversation with its answer may have where nothing else is said, in tokens.
    const CAPACITY: usize = 2_048;
    /// Bytes of a file of keys.
    const KEY_BYTES: usize = 1 << 20;

    /// What is served.
    struct Target {
        name: String,
        model: PathBuf,
        reward_model: Option<PathBuf>,
        feedback: Option<PathBuf>,
    }

    /// People who are asked, and the token of the one who needs no link.
    struct Asking {
        people: People,
        labelers: Vec<Labeler>,
        local: Option<String>,
        /// Tasks that wait to be ranked by that one.
        waiting: usize,
    }

    pub(crate) fn run(args: &Args) -> Result<()> {
        let target = Target::of(args)?;
        let asking = target.feedback.as_deref().map(|path| asking(args, path)).transpose()?;
        let gate = gate(args, asking.as_ref())?;
        let voice = voice(args, &target)?;
        check_memory(&voice, target.reward_model.is_some())?;
        let reward = target.reward_model.as_deref().map(|path| reward(args, path)).transpose()?;
        let address = SocketAddr::from((args.listen, args.port));
        let listener = TcpListener::bind(address)
            .with_context(|| format!("cannot listen at {address}; is another server there? --port takes another"))?;
        let (address, name, room) = (listener.local_addr()?, voice.name.clone(), voice.room);
        let handed = Handed { second: Arc::new(second), chance: chance()?, reward };
        let waiting = asking.as_ref().map_or(0, |asking| asking.waiting);
        let (people, local) = asking.map(|asking| (asking.people, asking.local)).unzip();
        let (service, thread) = Service::new(voice, gate, people, args.queue, handed);
        let (stopper, stopped) = stopper();
        stop_on_interrupt(stopper)?;
        say(&format!(
            "serving `{name}` of {}: {} answers at a time, each with its conversation at most {} tokens",
            target.model.display(),
            room.slots,
            room.capacity,
        ));
        say(&format!("  for programs: http://{address}/v1 (as OpenAI's)"));
        if let Some(token) = local.flatten() {
            say(&format!("  for you:      http://{address}/chat#token={token}"));
            if waiting > 0 {
                say(&format!("  {:<14}http://{address}/rank#token={token}", format!("{waiting} to rank:")));
            }
        }
        say("  Ctrl-C ends it when what is being written is done");
        serve(listener, service, stopped)?;
        let _ = thread.join();
        Ok(())
    }

    impl Target {
        /// The model of a run, or the one at the path.
        fn of(args: &Args) -> Result<Target> {
            let of_run = |artefact: &str| args.target.join(artefact).join("model");
            let is_run = args.target.join("config.toml").is_file();
            if !is_run {
                let stem = args.target.file_stem().map(|stem| stem.to_string_lossy().into_owned());
                let name = stem.filter(|stem| !stem.is_empty()).unwrap_or_else(|| "model".to_owned());
                let (model, feedback) = (args.target.clone(), args.feedback.clone());
                return Ok(Target { name, model, reward_model: None, feedback });
            }
            let model = of_run(&args.artefact);
            if !model.is_dir() {
                bail!(
                    "{} has no finished `{}`; finish the run, or name another --artefact",
                    args.target.display(),
                    args.artefact
                );
            }
            let reward_model = Some(of_run("reward-model")).filter(|path| path.is_dir());
            let feedback = Some(args.feedback.clone().unwrap_or_else(|| args.target.join("feedback")));
            Ok(Target { name: args.artefact.clone(), model, reward_model, feedback })
        }
    }

    /// Opens a folder of feedback, with those who may speak there.
    fn asking(args: &Args, path: &Path) -> Result<Asking> {
        let folder = Folder::open(path)?;
        let named = folder.labelers()?;
        let mut labelers: Vec<Labeler> = named.into_iter().map(labeler).collect::<Result<_>>()?;
        let local = if args.listen.is_loopback() { Some(folder.local_token()?) } else { None };
        let waiting = if local.is_some() { waiting(&folder).with_context(|| path.display().to_string())? } else { 0 };
        let own = |token: &String| Labeler { id: LOCAL_LABELER.to_owned(), token: digest(token), is_admin: true };
        labelers.extend(local.as_ref().map(own));
        let guidelines = folder.guidelines()?;
        let opened = People::open(Box::new(folder), Settings::default(), guidelines, !args.keep_nothing);
        let (people, torn) = opened.with_context(|| path.display().to_string())?;
        for (file, bytes) in torn {
            let name = file.name();
            say(&format!("{name}: cut off {bytes} bytes of a line that was being written when the server died"));
        }
        Ok(Asking { people, labelers, local, waiting })
    }

    /// Tasks that whoever needs no link may rank.
    fn waiting(folder: &Folder) -> Result<usize> {
        Ok(State::of(Settings::default(), folder.collected()?)?.queue(LOCAL_LABELER, TaskKind::Rank).left)
    }

    fn labeler(named: crate::desk::Labeler) -> Result<Labeler> {
        let token = digest_of(&named.token_sha256)
            .with_context(|| format!("labelers.toml: the token of {} is no SHA-256 of 64 digits", named.id))?;
        Ok(Labeler { id: named.id, token, is_admin: named.role == Role::Admin })
    }

    /// On this machine's own address `/v1` is open, unless there are keys. On another only keys and labelers open it.
    fn gate(args: &Args, asking: Option<&Asking>) -> Result<Gate> {
        let keys = args.api_keys.as_deref().map(keys).transpose()?;
        let labelers = asking.map(|asking| asking.labelers.clone()).unwrap_or_default();
        if !args.listen.is_loopback() && keys.is_none() && labelers.is_empty() {
            bail!(
                "--listen {}: others reach this address; give --api-keys, or name labelers with `instruct feedback link`, \
                 so that only those are served",
                args.listen
            );
        }
        let keys = if args.listen.is_loopback() { keys } else { Some(keys.unwrap_or_default()) };
        let own = [args.listen.to_string(), format!("[{}]", args.listen)];
        // This machine's own names, by which it is reached whatever it listens at.
        let local = ["localhost", "127.0.0.1", "[::1]"].map(str::to_owned);
        Ok(Gate { hosts: args.host.iter().cloned().chain(own).chain(local).collect(), keys, labelers })
    }

    fn keys(path: &Path) -> Result<Vec<[u8; 32]>> {
        let text = read_text(path, KEY_BYTES)?;
        let keys: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(digest).collect();
        if keys.is_empty() {
            bail!("{}: there is no key; write one on a line", path.display());
        }
        Ok(keys)
    }

    fn voice(args: &Args, target: &Target) -> Result<Voice> {
        let (base, decoder) = args.opening.open(&target.model)?;
        decoder.unembedding().with_context(|| format!("{} cannot be served", target.model.display()))?;
        let context = decoder.config().context;
        let capacity = args.capacity.unwrap_or(CAPACITY).min(context);
        if args.slots == 0 || capacity == 0 {
            bail!("--slots and --capacity must be above 0");
        }
        let room = Room::for_serving(args.slots, capacity);
        let precision = available(args.opening.precision).dtype().as_str();
        Ok(Voice { name: target.name.clone(), decoder: Arc::new(decoder), renderer: base.renderer, room, precision })
    }

    /// Refuses slots for which there is no memory, before anybody is kept waiting.
    fn check_memory(voice: &Voice, has_reward: bool) -> Result<()> {
        let Some(machine) = Machine::read(0) else { return Ok(()) };
        let needed = estimate(voice, voice.decoder.config(), has_reward).peak();
        if machine.held + needed > machine.limit {
            let Room { slots, capacity, .. } = voice.room;
            bail!(
                "{slots} answers of {capacity} tokens need {} beside the {} that this process holds, and it may have {}; \
                 lower --slots or --capacity",
                mega(needed),
                mega(machine.held),
                mega(machine.limit)
            );
        }
        Ok(())
    }

    /// What is still to come when the model is open: the cache, a pass, and the reward model.
    fn estimate(voice: &Voice, config: &Description, has_reward: bool) -> Estimate {
        let Room { slots, capacity, chunk } = voice.room;
        let cache = cached(config, slots, capacity);
        let pass = inferred(config, chunk * Room::ALONE + slots, Readout::Logits(slots));
        let scored = inferred(config, config.context, Readout::Scalar(1));
        let reward = has_reward.then(|| Buffers::frozen("reward model", config, HeadKind::Score, 4));
        let phases = vec![Phase { name: "serve", kept: cache, ..pass }, Phase { name: "score", kept: cache, ..scored }];
        Estimate { models: reward.into_iter().collect(), phases }
    }

    /// Scores of whole texts, one request at a time: the model has one set of buffers.
    fn reward(args: &Args, path: &Path) -> Result<Reward> {
        let (checkpoint, decoder) = open_decoder(path, &device(args.opening.device)?, crate::config::Precision::F32)?;
        let tokenizer = crate::prepare::open_tokenizer(&checkpoint, path)?;
        let both = Mutex::new((decoder, tokenizer));
        Ok(Arc::new(move |texts: &[String]| {
            let both = both.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            score(&both.0, &both.1, texts)
        }))
    }

    fn score(decoder: &Decoder, tokenizer: &Tokenizer, texts: &[String]) -> Result<Vec<f32>, String> {
        let context = decoder.config().context;
        let encode = |(i, text): (usize, &String)| {
            let ids = tokenizer.encode_prompt(text).map_err(|why| format!("text {i}: {why}"))?;
            match ids.len() {
                0 => Err(format!("text {i} has no token in the reward model's vocabulary")),
                n if n > context => Err(format!("text {i} has {n} tokens; the reward model reads {context}")),
                _ => Ok(ids),
            }
        };
        let ids: Vec<Vec<u32>> = texts.iter().enumerate().map(encode).collect::<Result<_, _>>()?;
        let items: Vec<Item> = ids.iter().map(|ids| Item { prompt: ids, completion: &[] }).collect();
        scores(decoder, &items, context).map_err(|why| why.to_string())
    }

    fn second() -> u64 {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
    }

    /// A number that nobody can guess.
    fn chance() -> Result<u64> {
        getrandom::u64().map_err(|why| anyhow::anyhow!("the system gives no random numbers: {why}"))
    }

    /// The first signal lets what is being written be finished; a second ends the process.
    fn stop_on_interrupt(stopper: instruct_serve::Stopper) -> Result<()> {
        let mut stopper = Some(stopper);
        ctrlc::set_handler(move || match stopper.take() {
            Some(stopper) => {
                say("stopping; what is being written is finished first (Ctrl-C again ends it at once)");
                stopper.stop();
            }
            None => std::process::exit(crate::listener::TWICE_INTERRUPTED),
        })?;
        Ok(())
    }
}

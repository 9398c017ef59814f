//! The program's server from outside: started, asked over HTTP, and stopped or killed.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

/// What became of a command that was to serve.
pub(crate) enum Begun {
    /// It listens.
    Listening(Server),
    /// It has ended, so, and after these messages.
    Ended(ExitStatus, String),
}

/// A server that has said where it is; dropping it kills it.
pub(crate) struct Server {
    child: Child,
    /// Name and port.
    at: String,
}

impl Server {
    /// Starts `command`, on a port that the system chooses, and waits until it listens.
    ///
    /// Errors: it ends before.
    pub(crate) fn start(command: &mut Command) -> Result<Server> {
        match Server::begin(command)? {
            Begun::Listening(server) => Ok(server),
            Begun::Ended(status, said) => bail!("the server ended with {status} before it said where it is:\n{said}"),
        }
    }

    /// The same of a server that may end before it listens.
    pub(crate) fn begin(command: &mut Command) -> Result<Begun> {
        let mut child =
            command.args(["--port", "0"]).stdin(Stdio::null()).stderr(Stdio::piped()).spawn().context("no server")?;
        let mut lines = BufReader::new(child.stderr.take().context("its messages are read")?).lines();
        let (mut at, mut said) = (None, String::new());
        // Its last line says how it is stopped.
        for line in lines.by_ref().map_while(Result::ok) {
            said += &format!("{line}\n");
            if let Some((_, rest)) = line.split_once("for programs: http://") {
                at = rest.split('/').next().map(str::to_owned);
            }
            if line.contains("Ctrl-C") {
                break;
            }
        }
        let Some(at) = at else { return Ok(Begun::Ended(child.wait()?, said)) };
        // Read on, because a program that cannot write what it has to say waits for ever.
        thread::spawn(move || lines.for_each(drop));
        Ok(Begun::Listening(Server { child, at }))
    }

    /// Names a person in a folder of feedback; returns the person's token.
    pub(crate) fn link(program: &Path, feedback: &Path, name: &str) -> Result<String> {
        let output = Command::new(program).args(["feedback", "link"]).arg(feedback).arg(name).output()?;
        let link = String::from_utf8(output.stdout)?;
        Ok(link.trim().split_once("#token=").context("a link has a token")?.1.to_owned())
    }

    /// What is answered to a POST by whoever has `token`; a client that asks too often waits.
    ///
    /// Errors: the server is gone, or refuses.
    pub(crate) fn post(&self, token: &str, path: &str, body: &Value) -> Result<Value> {
        self.ask(token, path, body)?.context("the server is gone")
    }

    /// The same; nothing where the server is gone before it has answered.
    pub(crate) fn ask(&self, token: &str, path: &str, body: &Value) -> Result<Option<Value>> {
        let (at, text) = (&self.at, body.to_string());
        let port = at.rsplit_once(':').context("an address has a port")?.1;
        let head =
            format!("POST {path} HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\nCookie: instruct-{port}={token}\r\n");
        let rest = format!("Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{text}", text.len());
        let exchange = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect(at)?;
            stream.write_all((head + &rest).as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let answer = exchange().unwrap_or_default();
        let Some((head, said)) = answer.split_once("\r\n\r\n") else { return Ok(None) };
        if head.starts_with("HTTP/1.1 429") {
            // So many requests a minute are no person's; the simulated ones wait for the next.
            thread::sleep(Duration::from_secs(2));
            return self.ask(token, path, body);
        }
        ensure!(head.starts_with("HTTP/1.1 200"), "{path}: {answer}");
        // A body that was cut off was not answered either.
        Ok(serde_json::from_str(said).ok())
    }

    /// Lets it finish, as Ctrl-C does.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.signal("INT")?;
        self.wait().map(drop)
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: &str) -> Result<()> {
        // A shell has `kill` built in, and a small system no other.
        let kill = format!("kill -{signal} {}", self.child.id());
        ensure!(Command::new("sh").args(["-c", &kill]).status()?.success(), "`{kill}` fails");
        Ok(())
    }

    /// Whether it listens no more.
    pub(crate) fn is_gone(&self) -> bool {
        TcpStream::connect(&self.at).is_err()
    }

    /// Waits until it has ended.
    pub(crate) fn wait(&mut self) -> Result<ExitStatus> {
        Ok(self.child.wait()?)
    }

    /// Kills what it has started itself, as strace starts what it watches.
    pub(crate) fn kill_children(&self) {
        let id = self.child.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        // Those that have ended meanwhile cannot be killed.
        let _ = Command::new("sh").args(["-c", &format!("kill -KILL {children}")]).status();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended, or is in nobody's way any more.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

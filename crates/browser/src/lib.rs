//! A person at a browser: headless Chromium, which presses keys and sees what is drawn, for the tests of pages.
//!
//! ```no_run
//! use instruct_browser::Browser;
//!
//! let mut browser = match Browser::start() {
//!     Ok(browser) => browser,
//!     Err(reason) => return println!("skipped: {reason}"),
//! };
//! browser.open("http://127.0.0.1:8080/rank");
//! browser.wait_for("document.querySelector('.board')");
//! browser.key("Enter");
//! assert!(browser.console_errors().is_empty());
//! ```
//!
//! It is driven over its debugging pipe, so that no port is opened and no crate is needed: it reads commands from file
//! descriptor 3 and writes answers and events to 4, as JSON ended by a zero byte. Every method panics where the browser
//! does not do what it was told, as tests do.

#![allow(clippy::unwrap_used, reason = "a test that cannot drive its browser says where")]

use serde_json::{Value, json};
use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, channel},
    },
    thread,
    time::Duration,
};

/// The script of axe-core, which [`Browser::barriers`] is handed: the file that `INSTRUCT_AXE` names, or what
/// `.ci/browser` fetched. None where there is neither; panics where the variable names no file.
pub fn axe() -> Option<String> {
    if let Some(named) = std::env::var_os("INSTRUCT_AXE") {
        return Some(fs::read_to_string(&named).unwrap_or_else(|error| panic!("INSTRUCT_AXE {named:?}: {error}")));
    }
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/axe-4.14.1/axe.min.js")).ok()
}

/// No answer of the browser takes this long; a test that waited for ever would say nothing.
const LIMIT: Duration = Duration::from_secs(120);

/// A shell puts its two pipes where the browser looks for them: a safe `Command` can hand over only 0, 1 and 2.
/// Without the sandbox, because root has none and these pages come from this process's own server.
const START: &str = "exec 3<&0 4>&1 </dev/null >/dev/null 2>&1; exec chromium --headless=new --no-sandbox \
    --remote-debugging-pipe --no-first-run --disable-gpu --disable-dev-shm-usage --disable-background-networking \
    --disable-component-update --disable-sync --hide-scrollbars --lang=en --user-data-dir=\"$0\" about:blank";

/// One browser with one page and a fresh profile; dropping it ends it.
pub struct Browser {
    child: Child,
    commands: ChildStdin,
    answers: Receiver<Value>,
    session: String,
    sent: u64,
    errors: Vec<String>,
    requests: Vec<String>,
    profile: PathBuf,
}

impl Browser {
    /// A browser that shows an empty page.
    ///
    /// Errors: Chromium is not installed, in words for whoever reads that a test was skipped.
    pub fn start() -> Result<Self, &'static str> {
        static STARTED: AtomicUsize = AtomicUsize::new(0);
        if !Command::new("sh").args(["-c", "command -v chromium"]).stdout(Stdio::null()).status().unwrap().success() {
            return Err("chromium is not installed (Debian's package `chromium`)");
        }
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let profile = std::env::temp_dir().join(format!("instruct-browser-{}-{number}", std::process::id()));
        // An earlier process of this number may have left its own.
        let _ = fs::remove_dir_all(&profile);
        fs::create_dir_all(&profile).unwrap();
        let mut shell = Command::new("sh");
        shell.args(["-c", START]).arg(&profile).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = shell.spawn().unwrap();
        let commands = child.stdin.take().unwrap();
        let mut pipe = BufReader::new(child.stdout.take().unwrap());
        let (hand_over, answers) = channel();
        thread::spawn(move || {
            let mut message = Vec::new();
            while pipe.read_until(0, &mut message).is_ok_and(|read| read > 0) {
                message.pop();
                let parsed = serde_json::from_slice(&message).unwrap();
                message.clear();
                if hand_over.send(parsed).is_err() {
                    return;
                }
            }
        });
        let (session, errors, requests) = (String::new(), Vec::new(), Vec::new());
        let mut browser = Self { child, commands, answers, session, sent: 0, errors, requests, profile };
        browser.attach();
        Ok(browser)
    }

    fn attach(&mut self) {
        let target = self.call("Target.createTarget", json!({"url": "about:blank"}))["targetId"].clone();
        let attached = self.call("Target.attachToTarget", json!({"targetId": target, "flatten": true}));
        self.session = attached["sessionId"].as_str().unwrap().to_owned();
        for domain in ["Page", "Runtime", "Log", "Network"] {
            self.call(&format!("{domain}.enable"), json!({}));
        }
    }

    /// Goes to `url` and waits until it is loaded, with its scripts.
    pub fn open(&mut self, url: &str) {
        self.call("Page.navigate", json!({"url": url}));
        self.wait_for("document.readyState === 'complete'");
    }

    /// Presses and releases one key: a character, or a name such as `Enter` or `ArrowLeft`; `Ctrl+` may stand before it.
    pub fn key(&mut self, key: &str) {
        let (modifiers, key) = key.strip_prefix("Ctrl+").map_or((0, key), |key| (2, key));
        let (code, text) = match key {
            "Backspace" => (8, ""),
            "Tab" => (9, ""),
            "Enter" => (13, "\r"),
            "Escape" => (27, ""),
            "ArrowLeft" => (37, ""),
            "ArrowUp" => (38, ""),
            "ArrowRight" => (39, ""),
            "ArrowDown" => (40, ""),
            character => (character.to_ascii_uppercase().bytes().next().unwrap(), character),
        };
        let mut event = json!({"type": "keyDown", "key": key, "windowsVirtualKeyCode": code, "modifiers": modifiers});
        if modifiers == 0 {
            event["text"] = text.into();
        }
        self.call("Input.dispatchKeyEvent", event.clone());
        event["type"] = "keyUp".into();
        self.call("Input.dispatchKeyEvent", event);
    }

    /// Writes `text` into the field that has the focus, as a keyboard or a paste would.
    pub fn text(&mut self, text: &str) {
        self.call("Input.insertText", json!({"text": text}));
    }

    /// Presses the mouse on the element that `from` selects and lets go over the one that `to` selects; a click when
    /// they are the same.
    pub fn drag(&mut self, from: &str, to: &str) {
        let points = self.eval(&format!(
            "(() => {{ const both = [{from:?}, {to:?}].map(s => document.querySelector(s)); \
             for (const e of both.reverse()) e.scrollIntoView({{block: 'nearest'}}); \
             const middle = r => [r.x + r.width / 2, r.y + r.height / 2]; \
             return both.reverse().map(e => middle(e.getBoundingClientRect())); }})()"
        ));
        let (start, end) = (&points[0], &points[1]);
        let between = json!([0, 1].map(|axis| (start[axis].as_f64().unwrap() + end[axis].as_f64().unwrap()) / 2.0));
        let moves = [("mouseMoved", start), ("mousePressed", start), ("mouseMoved", &between), ("mouseMoved", end)];
        for (kind, at) in moves.into_iter().chain([("mouseReleased", end)]) {
            let event = json!({"type": kind, "x": at[0], "y": at[1], "button": "left", "buttons": 1, "clickCount": 1});
            self.call("Input.dispatchMouseEvent", event);
        }
    }

    /// What the expression gives in the page, awaited when it is a promise; panics with the page's own exception.
    pub fn eval(&mut self, js: &str) -> Value {
        self.evaluated(js).unwrap_or_else(|exception| panic!("`{js}`: {exception}"))
    }

    fn evaluated(&mut self, js: &str) -> Result<Value, String> {
        let asked = json!({"expression": js, "awaitPromise": true, "returnByValue": true, "userGesture": true});
        let answer = self.answered("Runtime.evaluate", asked)?;
        match answer.get("exceptionDetails") {
            Some(details) => Err(details["exception"]["description"].as_str().unwrap_or("no words").to_owned()),
            None => Ok(answer["result"]["value"].clone()),
        }
    }

    /// Waits in the page until the condition holds, itself or what it promises; panics with what the page shows when it
    /// does not within a minute. A page that is left meanwhile forgets its promise, so the next one is asked again.
    pub fn wait_for(&mut self, condition: &str) {
        if !self.comes_to_hold(condition, 60_000) {
            let shown = self.eval("location.href + '\\n' + document.body.innerText");
            panic!("`{condition}` did not come to hold on {}", shown.as_str().unwrap_or_default());
        }
    }

    fn comes_to_hold(&mut self, condition: &str, milliseconds: u32) -> bool {
        let promise = format!(
            "new Promise(resolve => {{ const until = Date.now() + {milliseconds}; (async function look() {{ \
             let holds = false; try {{ holds = !!(await ({condition})); }} catch {{ }} \
             if (holds || Date.now() > until) resolve(holds); else setTimeout(look, 10); }})(); }})"
        );
        // A page that is being left answers with an error at once.
        let ask = |_| self.evaluated(&promise).map_err(|_| thread::sleep(Duration::from_millis(50))).ok();
        (0..200).find_map(ask) == Some(Value::Bool(true))
    }

    /// Writes a PNG of the window: `width` and `height` in CSS pixels, each drawn with `scale` dots, so 200 % zoom of
    /// a window is half its size with `scale` 2; `dark` is what the page is told of the reader's taste.
    pub fn screenshot(&mut self, path: &Path, width: u32, height: u32, scale: f64, dark: bool) {
        self.window(width, height, scale, dark);
        let taken = self.call("Page.captureScreenshot", json!({"format": "png"}));
        fs::write(path, bytes_of_base64(taken["data"].as_str().unwrap())).unwrap();
    }

    /// Gives the window a size and a colour scheme, as [`Browser::screenshot`] does; one as narrow as a phone is
    /// touched and has no mouse.
    pub fn window(&mut self, width: u32, height: u32, scale: f64, dark: bool) {
        let phone = width < 500;
        let size = json!({"width": width, "height": height, "deviceScaleFactor": scale, "mobile": phone});
        self.call("Emulation.setDeviceMetricsOverride", size);
        self.call("Emulation.setTouchEmulationEnabled", json!({"enabled": phone}));
        let scheme = if dark { "dark" } else { "light" };
        let still = json!({"name": "prefers-reduced-motion", "value": "reduce"});
        let taste = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}, still]});
        self.call("Emulation.setEmulatedMedia", taste);
        self.eval("new Promise(drawn => requestAnimationFrame(() => requestAnimationFrame(drawn)))");
    }

    /// What the console complained of since the last call: exceptions, errors, refused and failed requests.
    pub fn console_errors(&mut self) -> Vec<String> {
        self.eval("0");
        std::mem::take(&mut self.errors)
    }

    /// What axe-core, the checker of accessibility, holds against the page as it stands: impact, rule and elements, one
    /// each. `axe` is its script, as [`axe()`] finds it.
    pub fn barriers(&mut self, axe: &str) -> Vec<String> {
        if self.eval("typeof axe") == "undefined" {
            self.eval(&format!("{axe}; 0"));
        }
        let found = self.eval(
            "axe.run(document, { resultTypes: ['violations'] }).then(found => found.violations.map(rule => \
             `${rule.impact} ${rule.id}: ${rule.nodes.map(node => node.target.join(' ')).join(', ')}`))",
        );
        found.as_array().unwrap().iter().map(words).collect()
    }

    /// Every address that a page has asked for, in order.
    pub fn requests(&mut self) -> Vec<String> {
        self.eval("0");
        self.requests.clone()
    }

    fn call(&mut self, method: &str, params: Value) -> Value {
        self.answered(method, params).unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    fn answered(&mut self, method: &str, params: Value) -> Result<Value, String> {
        self.sent += 1;
        let mut command = json!({"id": self.sent, "method": method, "params": params});
        if !self.session.is_empty() {
            command["sessionId"] = self.session.clone().into();
        }
        self.commands.write_all(format!("{command}\0").as_bytes()).unwrap();
        loop {
            let message = self.answers.recv_timeout(LIMIT).unwrap_or_else(|_| panic!("no answer to {command}"));
            if message["id"] != self.sent {
                self.note(&message["method"], &message["params"]);
            } else if let Some(error) = message.get("error") {
                return Err(error["message"].to_string());
            } else {
                return Ok(message["result"].clone());
            }
        }
    }

    fn note(&mut self, method: &Value, params: &Value) {
        match method.as_str().unwrap_or_default() {
            "Network.requestWillBeSent" => self.requests.push(words(&params["request"]["url"])),
            "Runtime.exceptionThrown" => {
                self.errors.push(words(&params["exceptionDetails"]["exception"]["description"]))
            }
            "Runtime.consoleAPICalled" if params["type"] == "error" => self.errors.push(words(&params["args"])),
            "Log.entryAdded" if params["entry"]["level"] == "error" => {
                self.errors.push(format!("{} {}", words(&params["entry"]["text"]), words(&params["entry"]["url"])));
            }
            _ => {}
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // A browser that is gone already cannot be ended, and a profile in use stays: neither is the test's fault.
        let _ = self.commands.write_all(b"{\"id\": 0, \"method\": \"Browser.close\"}\0");
        for _ in 0..600 {
            match self.child.try_wait() {
                Ok(None) => thread::sleep(Duration::from_millis(100)),
                _ => break,
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.profile);
    }
}

fn words(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Pictures come as base64, and nothing else here does.
fn bytes_of_base64(text: &str) -> Vec<u8> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits: Vec<usize> = text.bytes().filter_map(|byte| DIGITS.iter().position(|digit| *digit == byte)).collect();
    let of_four = |four: &[usize]| {
        let bits = four.iter().enumerate().fold(0, |bits, (place, digit)| bits | digit << (18 - 6 * place));
        [bits >> 16, bits >> 8, bits].map(|bits| bits as u8).into_iter().take(four.len() * 3 / 4)
    };
    digits.chunks(4).flat_map(of_four).collect()
}

#[cfg(test)]
mod tests;

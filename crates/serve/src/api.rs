//! What pages ask: who is here, what to do next, what was said, how far it is.

use crate::{
    Refusal,
    desk::Desk,
    fields::Fields,
    gate::{Labeler, cookie_name},
    people::People,
};
use hyper::{HeaderMap, header::HeaderValue};
use instruct_data::Record;
use instruct_eval::{Against, Interval, Judged, PAPER_AGREEMENT, agreement};
use instruct_feedback::{Fault, Options, Said, State, Submission, TaskKind, groups, progress, records};
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

/// Who is here, for pages.
pub(crate) fn session(labeler: &Labeler, people: &People, model: &str) -> Value {
    let role = if labeler.is_admin { "admin" } else { "labeler" };
    json!({ "labeler": labeler.id, "role": role, "consent": people.keeps_answers, "model": model })
}

/// The token in the body of a request for a session.
pub(crate) fn token(body: &[u8]) -> Result<String, Refusal> {
    Fields::of(body)?.text("token")?.ok_or_else(|| Refusal::of_field("token", "`token` is missing"))
}

/// A cookie that keeps a token for a year: out of the reach of scripts, and not sent with what other sites ask.
pub(crate) fn cookie(headers: &HeaderMap, token: &str) -> Result<HeaderValue, Refusal> {
    let name = cookie_name(headers);
    let cookie = format!("{name}={token}; HttpOnly; SameSite=Strict; Path=/; Max-Age=31536000");
    HeaderValue::from_str(&cookie).map_err(|_| Refusal::of_field("token", "`token` cannot stand in a cookie"))
}

/// The task that a labeler is to do next.
pub(crate) async fn next(desk: &Desk, labeler: &Labeler, now: u64, body: &[u8]) -> Result<Value, Refusal> {
    let kind = match Fields::of(body)?.text("kind")?.as_deref() {
        Some("rank") => TaskKind::Rank,
        Some("demonstrate") => TaskKind::Demonstrate,
        _ => return Err(Refusal::of_field("kind", "`kind` must be `rank` or `demonstrate`")),
    };
    let labeler = labeler.id.clone();
    desk.look(move |state| Ok(assigned(state, &labeler, kind, now))).await
}

fn assigned(state: &mut State, labeler: &str, kind: TaskKind, now: u64) -> Value {
    let next = state.next(labeler, kind, now);
    let queue = state.queue(labeler, kind);
    let Some((next, task)) = next.as_ref().and_then(|next| Some((next, state.task(&next.task)?))) else {
        return json!({ "task": null, "done": queue.done, "left": queue.left });
    };
    let completion = |&slot: &usize| {
        let text = task.completions.get(slot).map(|completion| completion.text.as_str());
        json!({ "slot": slot, "text": text, "names_model": task.names_model(slot) })
    };
    json!({
        "task": task.id, "kind": kind.as_str(), "messages": task.messages,
        "completions": next.order.iter().map(completion).collect::<Value>(),
        "order_seed": next.order_seed, "lease": next.lease, "done": queue.done, "left": queue.left,
    })
}

/// What somebody said.
pub(crate) fn feedback(body: &[u8]) -> Result<Submission, Refusal> {
    Submission::parse(body).map_err(fault)
}

/// What somebody takes back.
pub(crate) fn retraction(body: &[u8]) -> Result<Submission, Refusal> {
    Submission::parse_retraction(body).map_err(fault)
}

fn fault(fault: Fault) -> Refusal {
    Refusal { param: fault.parameter().map(str::to_owned), ..Refusal::new(400, fault.to_string()) }
}

/// The answers that something is said of.
pub(crate) fn answers(said: &Said) -> Vec<&str> {
    match said {
        Said::Thumb(thumb) => vec![&thumb.answer],
        Said::Edit(edit) => vec![&edit.answer],
        Said::Pair(pair) => pair.answers.iter().map(String::as_str).collect(),
        _ => Vec::new(),
    }
}

/// How far the work is: all of it for an admin, one's own for others.
pub(crate) async fn progressed(desk: &Desk, labeler: &Labeler) -> Result<Value, Refusal> {
    let (id, is_admin) = (labeler.id.clone(), labeler.is_admin);
    let look = desk.look(move |state| {
        let mut progress = progress(state);
        progress.labelers.retain(|labeled| is_admin || labeled.id == id);
        let groups = if is_admin { groups(state) } else { Vec::new() };
        Ok(json!({ "tasks": progress.tasks, "labelers": progress.labelers, "agreement": groups }))
    });
    let mut shown = look.await?;
    let groups: Vec<Judged> = serde_json::from_value(shown["agreement"].take()).map_err(unexpected)?;
    // Thousands of resamples: not on the desk's thread, on which people wait to hear that they are heard.
    shown["agreement"] = spawn_blocking(move || agreed(&groups)).await.map_err(unexpected)??;
    Ok(shown)
}

fn unexpected(why: impl std::error::Error) -> Refusal {
    Refusal::new(500, why.to_string())
}

/// How far people agree; nothing, where no two have ranked the same.
fn agreed(groups: &[Judged]) -> Result<Value, Refusal> {
    let agreement = agreement(groups).map_err(unexpected)?;
    if agreement.items == 0 {
        return Ok(Value::Null);
    }
    let Against { pairs, pairwise, with_ties_half, tau_b } = agreement.all;
    let labeler = |(id, against): (&String, &Against)| json!({ "id": id, "pairwise": interval(against.pairwise) });
    Ok(json!({
        "pairs": pairs, "pairwise": interval(pairwise), "with_ties_half": interval(with_ties_half),
        "tau_b": interval(tau_b), "alpha": interval(agreement.alpha),
        "labelers": agreement.labelers.iter().map(labeler).collect::<Value>(), "paper": PAPER_AGREEMENT,
    }))
}

fn interval(interval: Option<Interval>) -> Value {
    interval.map_or(Value::Null, |Interval { mean, low, high, .. }| json!({ "value": mean, "low": low, "high": high }))
}

/// The records that a model would be trained on, a line each.
pub(crate) async fn exported(desk: &Desk) -> Result<String, Refusal> {
    let lines = desk.look(|state| {
        let records = records(state, &Options::default());
        let rankings = records.rankings.iter().map(Record::to_line);
        let lines = rankings.chain(records.demonstrations.iter().map(Record::to_line));
        Ok(json!(lines.map(|line| line + "\n").collect::<String>()))
    });
    Ok(lines.await?.as_str().unwrap_or_default().to_owned())
}

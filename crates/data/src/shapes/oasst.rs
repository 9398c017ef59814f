//! OpenAssistant's message trees: every message of the user with two or more ranked replies is a
//! ranking, and its best reply by a person is a demonstration.

use crate::{
    error::Problem,
    json::Fields,
    origin::Origin,
    record::{Content, Conversation, Demonstration, Message, Prompt, Ranking, Role},
    shapes::house,
};
use serde_json::Value;

/// Every message of the user, with the thread that leads to it.
pub(crate) fn prompts(fields: &mut Fields<'_>) -> Option<Vec<Prompt>> {
    Some(nodes(fields)?.into_iter().map(|node| node.prompt).collect())
}

/// The replies that were ranked first and that a person wrote.
pub(crate) fn demonstrations(fields: &mut Fields<'_>) -> Option<Vec<Demonstration>> {
    let best = |node: Node| {
        let reply = node.replies.into_iter().find(|reply| reply.rank == Some(0) && !reply.synthetic)?;
        Some(Demonstration { prompt: node.prompt, completion: reply.text })
    };
    Some(nodes(fields)?.into_iter().filter_map(best).collect())
}

/// The groups of replies that carry ranks. A reply without a rank is left out of its group.
pub(crate) fn rankings(fields: &mut Fields<'_>) -> Option<Vec<Ranking>> {
    let nodes = nodes(fields)?;
    let mut rankings = Vec::new();
    for node in nodes {
        let replies = node.replies.len();
        let (ranks, completions): (Vec<i64>, Vec<String>) =
            node.replies.into_iter().filter_map(|reply| Some((reply.rank? + 1, reply.text))).unzip();
        if ranks.len() < 2 {
            continue;
        }
        fields.leave_out("replies without a rank", replies - ranks.len());
        match house::check_ranks(&ranks) {
            Ok(ranks) => {
                rankings.push(Ranking { completions, ranks, ..house::comparison(node.prompt, Default::default()) })
            }
            Err(problem) => fields.problem(&format!("{}.replies[..].rank", node.place), problem)?,
        }
    }
    Some(rankings)
}

/// A message of the user and the replies to it.
struct Node {
    prompt: Prompt,
    place: String,
    replies: Vec<Reply>,
}

struct Reply {
    text: String,
    rank: Option<i64>,
    synthetic: bool,
}

fn nodes(fields: &mut Fields<'_>) -> Option<Vec<Node>> {
    let tree = fields.text("message_tree_id");
    let root = fields.required("prompt")?;
    let mut walk = Walk { tree: tree?, origin: fields.origin(), thread: Vec::new(), nodes: Vec::new(), bytes: 0 };
    walk.message(&mut fields.inner(root, "prompt")?, "prompt")?;
    Some(walk.nodes)
}

struct Walk {
    tree: String,
    origin: Origin,
    thread: Vec<Message>,
    nodes: Vec<Node>,
    /// Bytes of text in `nodes`: every node has a thread of its own.
    bytes: usize,
}

impl Walk {
    /// Visits a message and all below it; the thread is as before when it returns.
    fn message(&mut self, fields: &mut Fields<'_>, place: &str) -> Option<()> {
        let id = fields.text("message_id");
        let role = role(fields);
        let text = fields.text("text");
        let replies = replies(fields)?;
        self.thread.push(Message::new(role.clone()?, text?));
        let id = id?;
        if role == Some(Role::User) {
            let texts = self.thread.iter().map(|message| message.content.len());
            self.bytes += texts.sum::<usize>() + self.tree.len() + place.len();
            fields.spread("text", self.bytes)?;
            let content = Content::Messages(Conversation { messages: self.thread.clone() });
            let user = Some(self.tree.clone());
            let prompt = Prompt { id, content, user, use_case: None, origin: self.origin.clone() };
            let replies =
                replies.iter().enumerate().map(|(i, reply)| summary(fields, i, reply)).collect::<Option<_>>()?;
            self.nodes.push(Node { prompt, place: place.to_owned(), replies });
        }
        for (i, reply) in replies.iter().enumerate() {
            let name = format!("replies[{i}]");
            self.message(&mut fields.inner(reply, &name)?, &format!("{place}.{name}"))?;
        }
        self.thread.pop();
        Some(())
    }
}

/// The replies that were not deleted.
fn replies<'a>(fields: &mut Fields<'a>) -> Option<Vec<&'a Value>> {
    let kept = |reply: &&Value| reply.get("deleted").and_then(Value::as_bool) != Some(true);
    match fields.get("replies") {
        None => Some(Vec::new()),
        Some(Value::Array(replies)) => {
            let left: Vec<&Value> = replies.iter().filter(kept).collect();
            fields.leave_out("deleted replies", replies.len() - left.len());
            Some(left)
        }
        Some(other) => fields.wrong_type("replies", "an array", other),
    }
}

fn summary(fields: &mut Fields<'_>, i: usize, reply: &Value) -> Option<Reply> {
    let mut fields = fields.inner(reply, &format!("replies[{i}]"))?;
    let text = fields.text("text")?;
    let rank = match fields.get("rank") {
        None => None,
        Some(value) => Some(fields.integer_of("rank", value)?),
    };
    let synthetic = fields.get("synthetic").and_then(Value::as_bool) == Some(true);
    Some(Reply { text, rank, synthetic })
}

fn role(fields: &mut Fields<'_>) -> Option<Role> {
    match fields.text("role")?.as_str() {
        "prompter" => Some(Role::User),
        "assistant" => Some(Role::Assistant),
        other => {
            let allowed = "`prompter` or `assistant`".to_owned();
            fields.problem("role", Problem::OutOfRange { found: format!("`{other}`"), allowed })
        }
    }
}

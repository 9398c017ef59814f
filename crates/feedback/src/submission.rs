//! What a client posts, before it is known who and when.

use crate::{
    event::{Event, Kind, Said},
    fault::{Fault, Problem},
    fields::{Fields, id, word},
};

/// What a client posted: sound in itself, and not yet held against the tasks and answers that it names, which
/// [`State::check`](crate::State::check) does.
#[derive(Clone, Debug, PartialEq)]
pub struct Submission {
    /// The key that the page made.
    pub key: String,
    /// What was said.
    pub said: Said,
}

impl Submission {
    /// The body of `POST /api/feedback`.
    ///
    /// # Errors
    /// The first field that is missing, wrong, too long or not known.
    pub fn parse(body: &[u8]) -> Result<Submission, Fault> {
        let mut fields = Fields::parse(body)?;
        let key = fields.required("key", id)?;
        let kind = fields.required("kind", word)?;
        if kind == Kind::Retract {
            let allowed = "what somebody says; a retraction has its own address".to_owned();
            return Err(Fault::new("kind", Problem::Range { found: "`retract`".to_owned(), allowed }));
        }
        let said = Said::read(kind, &mut fields)?;
        fields.end()?;
        Ok(Submission { key, said })
    }

    /// The body of `POST /api/retract`.
    ///
    /// # Errors
    /// As [`Submission::parse`]; and a key that retracts itself.
    pub fn parse_retraction(body: &[u8]) -> Result<Submission, Fault> {
        let mut fields = Fields::parse(body)?;
        let key = fields.required("key", id)?;
        let retracts = fields.required("retracts", id)?;
        fields.end()?;
        if key == retracts {
            return Err(Fault::new("retracts", Problem::Repeated { value: key }));
        }
        Ok(Submission { key, said: Said::Retract { retracts } })
    }

    /// The event, once it is known who said it and at which second since 1970.
    pub fn event(self, by: &str, at: u64) -> Event {
        Event { key: self.key, at, by: by.to_owned(), said: self.said }
    }
}

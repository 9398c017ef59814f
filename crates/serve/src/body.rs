//! What a response consists of.

use crate::Refusal;
use hyper::{
    Response,
    body::{Bytes, Frame},
    header::{self, HeaderName, HeaderValue},
};
use serde_json::Value;
use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::sync::mpsc::Receiver;

/// The body of a response: whole, or in parts that are written while they are sent.
pub(crate) enum Body {
    Whole(Option<Bytes>),
    Parts(Receiver<Bytes>),
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let bytes = match &mut *self {
            Body::Whole(bytes) => Poll::Ready(bytes.take()),
            Body::Parts(parts) => parts.poll_recv(cx),
        };
        bytes.map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Body::Whole(None))
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        match self {
            Body::Whole(bytes) => hyper::body::SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Body::Parts(_) => hyper::body::SizeHint::default(),
        }
    }
}

/// What pages may do: nothing that does not come from this server.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
                      frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// A response with the headers that all have.
pub(crate) fn response(status: u16, kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    // Every status here is a literal of this crate.
    *response.status_mut() = hyper::StatusCode::from_u16(status).unwrap_or(hyper::StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    let all = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    headers.extend(all.map(|(name, value)| (name, HeaderValue::from_static(value))));
    response
}

/// A JSON response.
pub(crate) fn json(status: u16, value: &Value) -> Response<Body> {
    response(status, "application/json", Body::Whole(Some(value.to_string().into())))
}

/// What a client is told when it does not get what it asked for.
pub(crate) fn refused(refusal: &Refusal) -> Response<Body> {
    let mut response = json(refusal.status, &refusal.body());
    if let Some(seconds) = refusal.retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

/// A server-sent event.
pub(crate) fn event(value: &Value) -> Bytes {
    format!("data: {value}\n\n").into()
}

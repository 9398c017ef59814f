//! Connections: how many, how long, and how they end.

use crate::{Service, body::Body, patient::Patient};
use hyper::{Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{convert::Infallible, io, net::TcpListener as Listener, pin::pin, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Builder,
    select,
    sync::{Semaphore, watch},
    task::JoinSet,
    time::timeout,
};

/// Connections at a time; others wait until one ends.
const CONNECTIONS: usize = 256;
/// How long a client may take to send the head of a request.
const HEAD: Duration = Duration::from_secs(10);
/// How long answers may still be written after the server was told to stop. What is not written by then is cut off.
const DRAIN: Duration = Duration::from_secs(30);

/// Tells a server to stop; dropping it does too.
pub struct Stopper(watch::Sender<()>);

/// What a server looks at to know whether it should stop.
#[derive(Clone)]
pub struct Stopped(watch::Receiver<()>);

/// A stopper, and what the server is given of it.
pub fn stopper() -> (Stopper, Stopped) {
    let (stopper, stopped) = watch::channel(());
    (Stopper(stopper), Stopped(stopped))
}

impl Stopper {
    /// No further connection is taken, and what is being answered is still answered.
    pub fn stop(self) {
        drop(self.0);
    }
}

impl Stopped {
    async fn told(&mut self) {
        // Nothing is ever sent: the channel closes.
        while self.0.changed().await.is_ok() {}
    }
}

/// Answers requests until it is stopped.
///
/// Not on a thread of rayon's pool: the model's thread computes there, and waits for all of its threads.
///
/// Errors: the system gives no threads, or the listener is of no use.
pub fn serve(listener: Listener, service: Service, mut stopped: Stopped) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let (listener, service) = (TcpListener::from_std(listener)?, Arc::new(service));
        let (places, mut connections) = (Arc::new(Semaphore::new(CONNECTIONS)), JoinSet::new());
        loop {
            let accepted = async {
                let place = places.clone().acquire_owned().await;
                (place, listener.accept().await)
            };
            let (place, stream) = select! {
                () = stopped.told() => break,
                accepted = accepted => accepted,
            };
            // A connection that failed before it was taken is its client's affair; without descriptors it helps to wait.
            let Ok((stream, _)) = stream else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let (service, stopped) = (service.clone(), stopped.clone());
            connections.spawn(async move {
                answer(stream, service, stopped).await;
                drop(place);
            });
            while connections.try_join_next().is_some() {}
        }
        drop(listener);
        // What is not written by then is cut off.
        let _ = timeout(DRAIN, async { while connections.join_next().await.is_some() {} }).await;
        Ok(())
    })
}

/// Answers the requests of one connection.
async fn answer(stream: TcpStream, service: Arc<Service>, mut stopped: Stopped) {
    // Tokens are small, and somebody reads along.
    let _ = stream.set_nodelay(true);
    let respond = service_fn(move |request: hyper::Request<Incoming>| {
        let service = service.clone();
        async move { Ok::<Response<Body>, Infallible>(service.respond(request).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD).max_headers(64);
    let mut connection = pin!(http.serve_connection(TokioIo::new(Patient::new(stream)), respond));
    select! {
        // Whatever went wrong, the client is gone.
        _ = connection.as_mut() => return,
        () = stopped.told() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

//! Rolling updates as in Kubernetes lose no request.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::client::Client;
use crate::launch::{Launch, free_port};
use crate::load::Load;
use crate::netns::{Host, Network};
use crate::proc::wait_until;
use crate::support::Server;

on_every_class_slowly!(ten_rolling_updates_lose_nothing);

/// How many pods serve.
const REPLICAS: usize = 2;
/// The setting `pre_stop` of a pod.
const PRE_STOP: Duration = Duration::from_millis(1500);
/// How long after SIGTERM the endpoint of a pod is still sent clients.
const ENDPOINT_DELAY: Duration = Duration::from_millis(250);

/// The addresses of the pods that get clients at present.
type Endpoints = Arc<Mutex<Vec<SocketAddr>>>;

/// The network of a cluster: of hosts, or beside this process where hosts cannot be made.
struct Cluster {
    /// Where the clients, the service and the probes are.
    node: Option<Host>,
    network: Option<Network>,
}

/// A server with an address of its own.
struct Pod {
    server: Server,
    host: Option<Host>,
    address: SocketAddr,
}

impl Cluster {
    fn new() -> Self {
        let network = Network::new();
        if network.is_none() {
            eprintln!("all pods are at 127.0.0.1");
        }
        Self { node: network.as_ref().map(Network::host), network }
    }

    fn on_node<R: Send>(&self, run: impl FnOnce() -> R + Send) -> R {
        match &self.node {
            Some(host) => host.within(run),
            None => run(),
        }
    }

    /// Starts a pod, and waits until its readiness probe succeeds.
    fn ready_pod(&self, class: &str) -> Pod {
        let host = self.network.as_ref().map(Network::host);
        let own = host.as_ref().map_or(Ipv4Addr::LOCALHOST, Host::address);
        let [address, metrics] = [free_port(), free_port()].map(|it| SocketAddr::from((own, it)));
        let pre_stop = format!("{}ms", PRE_STOP.as_millis());
        let flags = ["-k", class, "-w", "2", "--pre-stop", &pre_stop];
        let launch = Launch::new(&flags).unbound().arg("--bind").arg(address.to_string());
        let launch = match &host {
            Some(host) => launch.by_way_of(&host.words()),
            None => launch,
        };
        let server = launch.arg("--metrics-bind").arg(metrics.to_string()).start();
        wait_until("the pod is ready", || self.on_node(|| is_ready(metrics).unwrap_or(false)));
        Pod { server, host, address }
    }

    /// Waits for the end of a pod that was asked to stop, and takes its host away at once.
    #[track_caller]
    fn expect_end(&self, mut pod: Pod) {
        pod.server.expect_clean_exit(); // before the kubelet would send SIGKILL
        if let (Some(network), Some(host)) = (&self.network, &pod.host) {
            network.remove(host);
        }
    }
}

fn is_ready(metrics: SocketAddr) -> io::Result<bool> {
    let mut client = Client::tcp(metrics)?;
    client.try_ask_last("/readyz")?;
    Ok(client.try_answer()?.status() == 200)
}

/// Forwards each connection of a new address to the next endpoint.
fn start_service(endpoints: &Endpoints, address: IpAddr) -> SocketAddr {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let own = listener.local_addr().unwrap();
    let endpoints = Arc::clone(endpoints);
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let endpoints = Arc::clone(&endpoints);
            thread::spawn(move || serve(client, &endpoints));
        }
    });
    own
}

/// A client whose pod cannot be connected to gets no answer, unless this process was delayed until the
/// endpoint had been taken away.
fn serve(client: TcpStream, endpoints: &Endpoints) {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    loop {
        let endpoint = {
            let endpoints = endpoints.lock().unwrap();
            endpoints[NEXT.fetch_add(1, Ordering::Relaxed) % endpoints.len()]
        };
        match TcpStream::connect_timeout(&endpoint, ENDPOINT_DELAY * 4) {
            Ok(pod) => return forward_both_ways(client, pod),
            Err(_) if !endpoints.lock().unwrap().contains(&endpoint) => (),
            Err(_) => return,
        }
    }
}

fn forward_both_ways(client: TcpStream, pod: TcpStream) {
    for socket in [&client, &pod] {
        let _ = socket.set_nodelay(true);
    }
    let (Ok(from), Ok(to)) = (pod.try_clone(), client.try_clone()) else { return };
    thread::spawn(move || forward(from, to));
    forward(client, pod);
}

fn forward(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = [0; 4096];
    loop {
        match from.read(&mut buffer) {
            Ok(length @ 1..) if to.write_all(&buffer[..length]).is_ok() => (),
            Ok(0) => {
                let _ = to.shutdown(Shutdown::Write);
                return;
            }
            Ok(_) | Err(_) => {
                let _ = to.shutdown(Shutdown::Both);
                let _ = from.shutdown(Shutdown::Both);
                return;
            }
        }
    }
}

/// Replaces each pod as Kubernetes does with `maxSurge: 1` and `maxUnavailable: 0`: the next one is ready
/// first; then the old one has SIGTERM, and its endpoint is taken away somewhat later.
fn ten_rolling_updates_lose_nothing(class: &str) {
    let cluster = Cluster::new();
    let mut pods: Vec<_> = (0..REPLICAS).map(|_| cluster.ready_pod(class)).collect();
    let endpoints: Endpoints = Arc::new(Mutex::new(pods.iter().map(|pod| pod.address).collect()));
    let own = cluster.node.as_ref().map_or(Ipv4Addr::LOCALHOST, Host::address);
    let load = cluster.on_node(|| Load::on_service(start_service(&endpoints, own.into())));
    for _ in 0..10 * REPLICAS {
        let new = cluster.ready_pod(class);
        endpoints.lock().unwrap().push(new.address);
        let old = pods.remove(0);
        pods.push(new);
        old.server.signal(Signal::SIGTERM);
        thread::sleep(ENDPOINT_DELAY); // this is what the cluster is slow at
        endpoints.lock().unwrap().retain(|address| *address != old.address);
        load.wait_answers(10);
        cluster.expect_end(old);
    }
    load.wait_answers(10);
    load.finish();
    pods.into_iter().for_each(|pod| pod.server.finish());
}

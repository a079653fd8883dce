//! A device: sends numbered lines, keeps each until it is acknowledged, answers commands. Needs native-tls.
//!
//! usage: GATEWAY=localhost:8443 CA_FILE=certs/ca.crt [HELLO_LINE="HELLO lock:17 …"] cargo run

use native_tls::{Certificate, TlsConnector, TlsStream};
use std::collections::hash_map::RandomState;
use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};
use std::{env, error::Error, fs, mem, thread};

const MAX_BACKOFF_MS: u64 = 60_000;
const TIMEOUT: Duration = Duration::from_secs(30);
const MAX_KEPT: usize = 100;

struct Device {
    /// The lines that are not acknowledged, by their number on the current connection.
    kept: BTreeMap<u64, String>,
    number: u64,
    readings: u64,
    attempt: u32,
    next_reading: Instant,
    sign_of_life: Instant,
}

type Stream = TlsStream<TcpStream>;
type Wait = Result<Option<Duration>, Box<dyn Error>>;

fn setting(name: &str, otherwise: u64) -> u64 {
    env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(otherwise)
}

/// From 0 to 1, without a library of random numbers.
fn random() -> f64 {
    RandomState::new().build_hasher().finish() as f64 / u64::MAX as f64
}

impl Device {
    fn send(&mut self, tls: &mut Stream, line: &str) -> std::io::Result<()> {
        tls.write_all(format!("{line}\n").as_bytes())?;
        self.sign_of_life = Instant::now() + Duration::from_millis(setting("SIGN_OF_LIFE_MS", 60_000));
        Ok(())
    }

    fn send_kept(&mut self, tls: &mut Stream, line: String) -> std::io::Result<()> {
        self.kept.insert(self.number, line.clone());
        self.number += 1;
        self.send(tls, &line)
    }

    /// Returns the wait of the goodbye line; None when the connection ends without one.
    fn serve(&mut self, tls: &mut Stream) -> Wait {
        // The gateway numbers the lines of each connection from 0, without the HELLO line and empty lines.
        let again: Vec<String> = mem::take(&mut self.kept).into_values().collect();
        self.number = again.len() as u64;
        self.kept = (0..).zip(again.iter().cloned()).collect();
        self.send(tls, &env::var("HELLO_LINE").unwrap_or_default())?;
        for line in &again {
            self.send(tls, line)?;
        }
        let (mut received, mut chunk) = (Vec::new(), [0; 4096]);
        loop {
            if Instant::now() >= self.next_reading {
                self.next_reading = Instant::now() + Duration::from_millis(setting("INTERVAL_MS", 1_000));
                // While too many lines are not acknowledged, readings are skipped.
                if self.kept.len() < MAX_KEPT {
                    self.readings += 1;
                    self.send_kept(tls, format!("reading {}", self.readings - 1))?;
                }
            }
            if Instant::now() >= self.sign_of_life {
                self.send(tls, "")?;
            }
            let due = self.next_reading.min(self.sign_of_life).saturating_duration_since(Instant::now());
            tls.get_ref().set_read_timeout(Some(due.max(Duration::from_millis(1))))?;
            match tls.read(&mut chunk) {
                Ok(0) => return Ok(None),
                Ok(count) => received.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error.into()),
            }
            while let Some(end) = received.iter().position(|&byte| byte == b'\n') {
                let bytes: Vec<u8> = received.drain(..=end).collect();
                let line = String::from_utf8_lossy(&bytes[..end]).into_owned();
                self.attempt = 0;
                if let Some(number) = line.strip_prefix("ACK ") {
                    self.kept.remove(&number.parse()?);
                } else if let Some(rest) = line.strip_prefix("BYE ") {
                    println!("goodbye {rest}");
                    let wait = rest.rsplit(' ').next().unwrap_or("").parse()?;
                    return Ok(Some(Duration::from_millis(wait)));
                } else {
                    println!("command {line}");
                    self.send_kept(tls, format!("done: {line}"))?;
                }
            }
        }
    }

    fn connect(&mut self, connector: &TlsConnector, gateway: &str) -> Wait {
        let tcp = TcpStream::connect(gateway)?;
        tcp.set_read_timeout(Some(TIMEOUT))?;
        tcp.set_write_timeout(Some(TIMEOUT))?;
        let host = gateway.rsplit_once(':').map_or(gateway, |(host, _)| host);
        let mut tls = connector.connect(host, tcp).map_err(|error| error.to_string())?;
        println!("connected");
        self.serve(&mut tls)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let gateway = env::var("GATEWAY")?;
    let ca = Certificate::from_pem(&fs::read(env::var("CA_FILE")?)?)?;
    let connector = TlsConnector::builder().disable_built_in_roots(true).add_root_certificate(ca).build()?;
    let (kept, now) = (BTreeMap::new(), Instant::now());
    let mut device = Device { kept, number: 0, readings: 0, attempt: 0, next_reading: now, sign_of_life: now };
    loop {
        let wait = device.connect(&connector, &gateway).unwrap_or_else(|error| {
            println!("disconnected: {error}");
            None
        });
        thread::sleep(wait.unwrap_or_else(|| {
            // Full jitter: devices that lost the gateway together do not return together.
            let bound = MAX_BACKOFF_MS.min(setting("BACKOFF_MS", 1_000) << device.attempt.min(16));
            device.attempt += 1;
            Duration::from_millis((random() * bound as f64) as u64)
        }));
    }
}

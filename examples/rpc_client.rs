//! A small blocking client of MessagePack-RPC: one call at a time, or many at once.
//!
//! ```text
//! cargo run --example rpc_service &
//! cargo run --example rpc_client -- 127.0.0.1:8000
//! ```

#![allow(clippy::print_stdout)]

use std::error::Error;
use std::io::{BufReader, Write};
use std::net::TcpStream;

use serde::Serialize;
use serde::de::{Deserialize, DeserializeOwned};
use serde_json::Value;

/// A connection. Its methods fail if it breaks, or if the server answers with an error.
struct Client {
    output: TcpStream,
    input: BufReader<TcpStream>,
    next_id: u32,
}

type Result<T> = std::result::Result<T, Box<dyn Error>>;

impl Client {
    fn connect(address: &str) -> Result<Self> {
        let output = TcpStream::connect(address)?;
        output.set_nodelay(true)?;
        let input = BufReader::new(output.try_clone()?);
        Ok(Self { output, input, next_id: 0 })
    }

    /// Calls a method and waits for its result.
    fn call<R: DeserializeOwned>(&mut self, method: &str, params: impl Serialize) -> Result<R> {
        let mut results = self.call_all(method, &[params])?;
        results.pop().ok_or("no answer")?
    }

    /// Calls a method with each of these parameters before it reads an answer. A draining server
    /// may close before all calls are answered; the unanswered calls were not started.
    fn call_all<R: DeserializeOwned>(
        &mut self,
        method: &str,
        all: &[impl Serialize],
    ) -> Result<Vec<Result<R>>> {
        let (mut calls, first) = (Vec::new(), self.next_id);
        for params in all {
            rmp_serde::encode::write(&mut calls, &(0, self.next_id, method, params))?;
            self.next_id = self.next_id.wrapping_add(1);
        }
        let mut output = self.output.try_clone()?;
        // If a client writes without reading, the server stops reading too.
        let sending = std::thread::spawn(move || output.write_all(&calls));
        let mut results: Vec<_> = all.iter().map(|_| None).collect();
        for _ in all {
            let (id, result) = self.read_answer()?;
            let at = usize::try_from(id.wrapping_sub(first))?;
            *results.get_mut(at).ok_or("an answer to no call")? = Some(result);
        }
        sending.join().map_err(|_| "the sending thread panicked")??;
        results.into_iter().map(|result| result.ok_or("a call without an answer".into())).collect()
    }

    /// Calls a method without an answer.
    fn notify(&mut self, method: &str, params: impl Serialize) -> Result<()> {
        Ok(self.output.write_all(&rmp_serde::to_vec(&(2, method, params))?)?)
    }

    /// Reads the next answer to any call: its number and its result.
    fn read_answer<R: DeserializeOwned>(&mut self) -> Result<(u32, Result<R>)> {
        let mut decoder = rmp_serde::Deserializer::new(&mut self.input);
        let answer: (u8, u32, Value, Value) = Deserialize::deserialize(&mut decoder)?;
        match answer {
            (1, id, Value::Null, result) => {
                Ok((id, serde_json::from_value(result).map_err(Into::into)))
            }
            (1, id, error, _) => Ok((id, Err(error.to_string().into()))),
            _ => Err("this is no answer".into()),
        }
    }
}

fn main() -> Result<()> {
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:8000".to_owned());
    let mut client = Client::connect(&address)?;
    let sum: f64 = client.call("sum", [0.5, 1.5, 40.0])?;
    println!("the sum is {sum}");
    client.notify("ticket", [0; 0])?;
    let ticket: u64 = client.call("ticket", [0; 0])?;
    println!("ticket {ticket}, as a notification took one");
    let quotients = client.call_all::<i64>("divide", &[(7, 2), (1, 0), (9, 3)])?;
    for quotient in quotients {
        match quotient {
            Ok(number) => println!("divided: {number}"),
            Err(error) => println!("not divided: {error}"),
        }
    }
    for n in [1, 5] {
        match client.call::<String>("nth", (["a", "b"], n)) {
            Ok(letter) => println!("letter {n}: {letter}"),
            Err(error) => println!("no letter {n}: {error}"),
        }
    }
    let results = client.call_all::<f64>("sum", &vec![[1.0, 2.0]; 100_000])?;
    let total: f64 = results.into_iter().sum::<Result<f64>>()?;
    println!("100000 calls at once: {total}");
    Ok(())
}

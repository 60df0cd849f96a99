//! Clients of the public API: each asks one thing after the other, of whichever controller the dice say, again under
//! the same request id until it is answered, or gives up and leaves open what became of it.

use std::{
    error::Error as _,
    path::PathBuf,
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use roster_proto::{
    call,
    replay::Again,
    spec::{ServiceSpec, StackSpec},
    whole,
    wire::{self, control_client::ControlClient},
};
use roster_tests::{dice::Dice, lab::trial::Trial};
use tokio::time::{sleep, timeout};
use tonic::{
    Code, Request, Status,
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};

use super::history::{History, What};

/// As many as share a register, about.
const CLIENTS_PER_KEY: usize = 3;
/// Registers in use at a time ...
const KEYS: usize = 2;
/// ... and for how many questions, about.
const QUESTIONS_PER_KEY: usize = 24;
/// Between two questions of a client, at most.
const PAUSE_MILLIS: usize = 60;
/// A controller that is stopped takes a call and says nothing.
const ATTEMPT: Duration = Duration::from_secs(1);
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(20);
/// Far longer than any fault and what follows from it.
const PATIENCE: Duration = Duration::from_secs(30);
/// One in so many gives up a write that may or may not have been done.
const IMPATIENT: usize = 3;
const LABEL: &str = "value";

pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(future)
}

#[derive(Debug)]
pub(crate) struct Client {
    controllers: Vec<ControlClient<Channel>>,
    dice: Dice,
}

/// What became of a question.
enum Outcome<T> {
    Answered(T),
    /// It may have been done, or may still be.
    Open,
    /// It was not done, and never will be.
    Undone,
}

impl Client {
    /// Connects when it has something to ask.
    pub(crate) fn new(sockets: &[PathBuf], dice: &mut Dice) -> Self {
        let connect = |socket: &PathBuf| {
            let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).expect("a path");
            ControlClient::new(endpoint.connect_lazy())
        };
        Self { controllers: sockets.iter().map(connect).collect(), dice: dice.another() }
    }

    /// Until it is answered; `None` when nobody is to know whether it was done.
    async fn try_write(&mut self, key: &str, value: u64, patient: bool) -> Result<Outcome<What>, String> {
        let mut service = ServiceSpec::of_image("register", 0);
        service.labels.insert(LABEL.to_owned(), value.to_string());
        let services = [("s".parse().expect("a name"), service)].into();
        let stack: wire::StackSpec = StackSpec { name: key.parse().expect("a name"), services }.into();
        let id = format!("value-{value}");
        let ask = async |controller: &mut ControlClient<Channel>| {
            let apply = wire::ApplyRequest { stack: Some(stack.clone()), prune: false, base: None };
            let mut request = Request::new(apply);
            request.metadata_mut().insert(call::REQUEST_ID, id.parse().expect("letters and digits"));
            let answer = controller.apply(request).await?.into_inner();
            Ok(What::Written { version: answer.version })
        };
        self.until_answered(ask, patient).await
    }

    pub(crate) async fn write(&mut self, key: &str, value: u64) -> Result<What, String> {
        match self.try_write(key, value, true).await? {
            Outcome::Answered(what) => Ok(what),
            Outcome::Open | Outcome::Undone => Err(format!("{value} could not be written to {key}")),
        }
    }

    pub(crate) async fn read(&mut self, key: &str) -> Result<What, String> {
        match self.until_answered(async |controller| read(controller, key, false).await, true).await? {
            Outcome::Answered(what) => Ok(what),
            Outcome::Open | Outcome::Undone => Err(format!("{key} could not be read")),
        }
    }

    /// What the controller has, without asking the others.
    pub(crate) async fn read_stale(&mut self, key: &str) -> Result<What, Status> {
        read(&self.controllers[0], key, true).await
    }

    /// `None` when there is no answer in the time of an attempt.
    pub(crate) async fn read_once(&mut self, key: &str) -> Option<What> {
        timeout(ATTEMPT, read(&self.controllers[0], key, false)).await.ok()?.ok()
    }

    async fn until_answered(
        &mut self,
        ask: impl AsyncFn(&mut ControlClient<Channel>) -> Result<What, Status>,
        patient: bool,
    ) -> Result<Outcome<What>, String> {
        let deadline = Instant::now() + PATIENCE;
        let mut perhaps_done = false;
        loop {
            let number = self.dice.roll(self.controllers.len());
            match timeout(ATTEMPT, ask(&mut self.controllers[number])).await {
                Ok(Ok(answer)) => return Ok(Outcome::Answered(answer)),
                Ok(Err(status)) => match again(&status) {
                    Again::Never => return Err(format!("an answer that nothing explains: {status:?}")),
                    Again::Safely | Again::Elsewhere => {}
                    Again::Perhaps => perhaps_done = true,
                },
                Err(_) => perhaps_done = true,
            }
            let is_over = Instant::now() > deadline;
            if perhaps_done && (is_over || !patient) {
                return Ok(Outcome::Open);
            }
            if is_over {
                return Ok(Outcome::Undone);
            }
            sleep(BETWEEN_ATTEMPTS).await;
        }
    }
}

async fn read(controller: &ControlClient<Channel>, key: &str, stale: bool) -> Result<What, Status> {
    let filter = wire::Filter { stack: Some(key.to_owned()), ..wire::Filter::default() };
    let asked = whole::listing(async || {
        let mut request = Request::new(wire::ListServicesRequest { filter: Some(filter.clone()) });
        if stale {
            request.metadata_mut().insert(call::CONSISTENCY, MetadataValue::from_static(call::STALE));
        }
        controller.clone().list_services(request).await
    });
    match asked.await {
        Ok(wire::ListServicesResponse { services, version }) => {
            let label = services.first().and_then(|service| service.spec.as_ref()?.labels.get(LABEL));
            let value = label.and_then(|label| label.parse().ok());
            let value = value.ok_or_else(|| Status::data_loss(format!("{key} without a value: {services:?}")))?;
            Ok(What::Found { value: Some(value), version: Some(version) })
        }
        Err(status) if status.code() == Code::NotFound => Ok(What::Found { value: None, version: None }),
        Err(status) => Err(status),
    }
}

/// A status that no controller sent has the failure of the connection as its source.
fn again(status: &Status) -> Again {
    match status.source() {
        Some(error) => Again::of_transport(error),
        None => Again::of_status(status),
    }
}

/// All of them, each on a thread of its own.
#[derive(Debug)]
pub(crate) struct Clients<'a> {
    history: &'a History,
    sockets: Vec<PathBuf>,
    dice: Vec<Dice>,
    /// Questions so far: they say which registers are in use.
    questions: AtomicUsize,
    /// The next process, and the next value to be written: none is taken twice.
    process: AtomicUsize,
    value: AtomicU64,
}

impl<'a> Clients<'a> {
    pub(crate) fn new(trial: &Trial, history: &'a History, dice: &mut Dice) -> Self {
        Self {
            history,
            sockets: trial.lab.controllers().map(|host| host.socket()).collect(),
            dice: (0..CLIENTS_PER_KEY * KEYS).map(|_| dice.another()).collect(),
            questions: AtomicUsize::new(0),
            process: AtomicUsize::new(0),
            value: AtomicU64::new(1),
        }
    }

    /// Until they are told to stop.
    pub(crate) fn run(&self, stop: &AtomicBool) -> Result<(), String> {
        thread::scope(|scope| {
            let ask = |dice: &Dice| {
                let dice = dice.clone();
                scope.spawn(move || block_on(self.ask_on(dice, stop)))
            };
            let clients: Vec<_> = self.dice.iter().map(ask).collect();
            clients.into_iter().try_for_each(|client| client.join().expect("clients do not panic"))
        })
    }

    async fn ask_on(&self, mut dice: Dice, stop: &AtomicBool) -> Result<(), String> {
        let mut client = Client::new(&self.sockets, &mut dice);
        let mut process = self.process.fetch_add(1, Ordering::Relaxed);
        while !stop.load(Ordering::Relaxed) {
            let generation = self.questions.fetch_add(1, Ordering::Relaxed) / (KEYS * QUESTIONS_PER_KEY);
            let key = format!("r{generation}-{}", dice.roll(KEYS));
            if dice.roll(2) == 0 {
                self.history.note(process, &key, What::Read);
                self.history.note(process, &key, client.read(&key).await?);
            } else {
                let value = self.value.fetch_add(1, Ordering::Relaxed);
                self.history.note(process, &key, What::Write(value));
                match client.try_write(&key, value, dice.roll(IMPATIENT) > 0).await? {
                    Outcome::Answered(answer) => self.history.note(process, &key, answer),
                    Outcome::Undone => self.history.note(process, &key, What::Withdrawn),
                    Outcome::Open => process = self.process.fetch_add(1, Ordering::Relaxed),
                }
            }
            sleep(Duration::from_millis(dice.roll(PAUSE_MILLIS) as u64)).await;
        }
        Ok(())
    }

    /// Asks every controller for every register once more, when all is well again.
    pub(crate) fn look_again(&self) -> Result<(), String> {
        let process = self.process.fetch_add(1, Ordering::Relaxed);
        let mut dice = self.dice[0].clone();
        block_on(async {
            for socket in &self.sockets {
                let mut client = Client::new(std::slice::from_ref(socket), &mut dice);
                for key in self.history.keys() {
                    self.history.note(process, &key, What::Read);
                    self.history.note(process, &key, client.read(&key).await?);
                }
            }
            Ok(())
        })
    }
}

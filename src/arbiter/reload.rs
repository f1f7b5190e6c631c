//! A reload is a transaction: everything new is read, checked, bound and tried out before anything
//! old goes, and whatever fails leaves the old as it was.

use slog::{error, info, warn};

use super::Arbiter;
use super::company::{Company, CompanyError, Plan};
use super::roster::Policy;
use crate::listen::inherit::name_of;
use crate::listen::{Door, one_an_address};
use crate::log::chain;
use crate::os::clock;

/// Reads the settings anew and makes a plan of them; or says, for an operator, why not.
pub(crate) type Planner<'a> = Box<dyn Fn() -> Result<Plan<'a>, String> + 'a>;

impl<'a> Arbiter<'a> {
    /// Begins a reload, if one is wished for and none is under way. Wishes that come meanwhile
    /// become one.
    pub(super) fn reload_if_wished(&mut self) {
        if !self.reload_wished || self.roster.is_reloading() {
            return;
        }
        self.reload_wished = false;
        if self.roster.stopping().is_some() {
            return;
        }
        self.manager.reloading(clock::now());
        match self.prepare() {
            Ok(company) => self.begin(company),
            Err(reason) => {
                error!(self.log(), "reload refused"; "error" => reason);
                if self.roster.resume() {
                    info!(self.log(), "workers come back");
                }
                let status = format!("{}; the last reload was refused", self.status_line());
                self.manager.ready(&status);
            }
        }
    }

    /// Makes everything that can be made without touching what serves.
    fn prepare(&self) -> Result<Company<'a>, String> {
        let plan = (self.planner)()?;
        let present = self.crew.company();
        refuse_what_needs_an_upgrade(present, &plan)?;
        let company = Company::found(plan, &present.listeners, Some(present), self.kin.is_alone());
        company.map_err(|error| match error {
            CompanyError::Listen(error) => chain(&error),
            CompanyError::Log(error) => chain(&error),
            CompanyError::Board(error) => format!("cannot make a scoreboard: {error}"),
        })
    }

    fn begin(&mut self, company: Company<'a>) {
        let present = &self.crew.company().plan.settings;
        let settings = &company.plan.settings;
        // Workers that were added or taken away by a signal stay so, unless the file says anew
        // how many there are to be.
        let unchanged = settings.workers == present.workers;
        let target = if unchanged { self.roster.target() } else { settings.workers.count() };
        let policy = Policy::from(settings);
        let class = company.plan.class.name();
        let opened = company.listeners_unlike(self.crew.company());
        let opened = opened.filter(|listener| listener.door() != Door::Unopened);
        let opened = one_an_address(opened).into_iter();
        let opened: Vec<String> = opened.map(|listener| listener.name().to_owned()).collect();
        self.last_words.clear();
        self.say_done(); // of an earlier one
        self.crew.adopt(company);
        self.roster.resume();
        let generation = self.roster.reload(policy, target);
        info!(self.log(), "reload begins"; "generation" => generation, "class" => class,
            "workers" => target);
        self.hook("on_reload", |hooks| hooks.on_reload(generation));
        for address in opened {
            info!(self.log(), "listening"; "address" => address);
        }
    }

    pub(super) fn commit_reload(&mut self) {
        let generation = self.roster.generation();
        if let Some(previous) = self.crew.commit(self.kin.is_alone(), generation) {
            let closed = previous.listeners_unlike(self.crew.company());
            for listener in one_an_address(closed) {
                self.manager.forget(&name_of(listener));
                info!(self.log(), "no longer listening"; "address" => listener.name());
            }
        }
        self.store_sockets();
        self.set_backlogs();
        self.show_title();
        self.settling = true;
    }

    /// Says that a reload is done, once nobody of an older generation lets clients in.
    pub(super) fn conclude_reload(&mut self) {
        if self.settling
            && self.roster.stopping().is_none()
            && !self.crew.any_older_accepts(self.roster.generation())
        {
            self.say_done();
        }
    }

    fn say_done(&mut self) {
        if std::mem::take(&mut self.settling) {
            info!(self.log(), "reload done"; "generation" => self.roster.generation());
            self.manager.ready(&self.status_line());
        }
    }

    pub(super) fn roll_back_reload(&mut self) {
        self.crew.roll_back(self.kin.is_alone());
        error!(self.log(), "reload failed: back to the earlier settings";
            "generation" => self.roster.generation(), "error" => &self.last_words);
        let status = format!("{}; the last reload failed", self.status_line());
        self.manager.ready(&status);
    }

    fn set_backlogs(&self) {
        let company = self.crew.company();
        for listener in &company.listeners {
            if let Err(error) = listener.set_backlog(company.plan.settings.backlog) {
                warn!(self.log(), "backlog cannot be changed"; "address" => listener.name(),
                    "error" => %error);
            }
        }
    }
}

/// What belongs to the master itself cannot change under it.
fn refuse_what_needs_an_upgrade(present: &Company<'_>, plan: &Plan<'_>) -> Result<(), String> {
    let (old, new) = (&present.plan.settings, &plan.settings);
    let changed = [
        ("pidfile", old.pidfile != new.pidfile),
        ("daemon", old.daemon != new.daemon),
        ("single_instance", old.single_instance != new.single_instance),
        ("proc_name", new.single_instance && old.proc_name != new.proc_name),
    ];
    match changed.iter().find(|(_, changed)| *changed) {
        None => Ok(()),
        Some((key, _)) => {
            let place = new.source(key);
            Err(format!("{key} ({place}) cannot change by a reload: start the program anew"))
        }
    }
}

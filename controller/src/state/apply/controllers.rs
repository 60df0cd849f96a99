//! Controllers join, change their place and their part, and go.

use std::{collections::BTreeMap, sync::Arc};

use roster_proto::{
    id::{ControllerName, PeerId},
    report::Subject,
};

use super::Edit;
use crate::state::{
    Holder, MAX_CONTROLLERS,
    command::Refusal,
    controllers::{ControllerInfo, LONGEST_CERTIFICATE, SHORTEST_CERTIFICATE, SHORTEST_DELAY, Settings},
};

impl Edit<'_> {
    /// A controller that is not known joins; of one that is, where it is and what it runs is brought up to date.
    pub(super) fn put_controller(
        &mut self,
        id: PeerId,
        name: &ControllerName,
        address: &str,
        release: &str,
        protocol: u32,
        spare: bool,
    ) -> Result<(), Refusal> {
        if let Some(before) = self.state.controllers.get(&id).cloned() {
            return self.move_controller(&before, address, release, protocol);
        }
        if let Some(holder) = self.state.controller_named(name) {
            return Err(Refusal::ControllerExists { name: name.clone(), id: holder.id });
        }
        if self.state.controllers.len() >= MAX_CONTROLLERS {
            let limit = format!("controller {name} cannot join: {MAX_CONTROLLERS} controllers are allowed");
            return Err(Refusal::Limit(limit));
        }
        self.set_controller(ControllerInfo {
            id,
            name: name.clone(),
            address: address.to_owned(),
            release: release.to_owned(),
            protocol,
            spare,
            leaving: false,
            silent_since: None,
            joined: self.at,
        });
        self.tell_controller(name, || format!("controller {name} joins"));
        Ok(())
    }

    fn move_controller(
        &mut self,
        before: &ControllerInfo,
        address: &str,
        release: &str,
        protocol: u32,
    ) -> Result<(), Refusal> {
        let mut next = before.clone();
        next.address = address.to_owned();
        next.release = release.to_owned();
        next.protocol = protocol;
        if next == *before {
            return Ok(());
        }
        let name = &before.name;
        if before.address != address {
            self.tell_controller(name, || format!("controller {name} is at {address}, before at {}", before.address));
        }
        if before.release != release {
            self.tell_controller(name, || format!("controller {name} runs {release}, before {}", before.release));
        }
        self.set_controller(next);
        Ok(())
    }

    pub(super) fn set_controller_silent(&mut self, id: PeerId, silent: bool) -> Result<(), Refusal> {
        let before = self.state.controllers.get(&id).cloned().ok_or(Refusal::NoSuchController(id))?;
        if before.silent_since.is_some() == silent {
            return Ok(());
        }
        let silent_since = silent.then_some(self.at);
        self.set_controller(ControllerInfo { silent_since, ..ControllerInfo::clone(&before) });
        self.tell_controller(&before.name, || match silent {
            true => format!("controller {} does not answer", before.name),
            false => format!("controller {} answers again", before.name),
        });
        Ok(())
    }

    /// All or none: one that stands in for another takes its vote in the same step.
    pub(super) fn set_spares(&mut self, spares: &BTreeMap<PeerId, bool>) -> Result<(), Refusal> {
        let mut next = self.state.controllers.clone();
        for (id, spare) in spares {
            let before = next.get(id).filter(|controller| !controller.leaving).ok_or(Refusal::NoSuchController(*id))?;
            let changed = ControllerInfo { spare: *spare, ..ControllerInfo::clone(before) };
            next.insert(*id, Arc::new(changed));
        }
        if !next.values().any(|controller| controller.votes()) {
            return Err(Refusal::LastVoter);
        }
        for id in spares.keys() {
            let (Some(after), Some(before)) = (next.get(id), self.state.controllers.get(id)) else { continue };
            if after.spare != before.spare {
                let (name, role) = (after.name.clone(), if after.spare { "a spare" } else { "a voter" });
                self.set_controller(ControllerInfo::clone(after));
                self.tell_controller(&name, || format!("controller {name} is to be {role}"));
            }
        }
        Ok(())
    }

    /// From now on it is to go; it is forgotten once it is out of raft's configuration.
    pub(super) fn dismiss_controller(&mut self, id: PeerId) -> Result<(), Refusal> {
        let before = self.state.controllers.get(&id).cloned().ok_or(Refusal::NoSuchController(id))?;
        if before.leaving {
            return Ok(());
        }
        if !self.state.controllers.values().any(|other| other.id != id && other.votes()) {
            return Err(Refusal::LastVoter);
        }
        self.set_controller(ControllerInfo { leaving: true, ..ControllerInfo::clone(&before) });
        self.tell_controller(&before.name, || format!("controller {} is to leave", before.name));
        Ok(())
    }

    pub(super) fn remove_controller(&mut self, id: PeerId) -> Result<(), Refusal> {
        let gone = self.state.controllers.get(&id).cloned().ok_or(Refusal::NoSuchController(id))?;
        self.revoke(Holder::Controller(gone.name.to_string()))?;
        self.state.controllers.remove(&id);
        self.changed = true;
        self.tell_controller(&gone.name, || format!("controller {} has left the cluster", gone.name));
        Ok(())
    }

    pub(super) fn configure(&mut self, settings: &Settings) -> Result<(), Refusal> {
        let or_never = |micros: u64| micros == 0 || micros >= SHORTEST_DELAY;
        let bounds = [
            ("the time after which a controller is replaced", or_never(settings.replace_controller_after)),
            ("the time that the brake holds", or_never(settings.brake_for)),
        ];
        if let Some((what, _)) = bounds.into_iter().find(|(_, fits)| !fits) {
            return Err(Refusal::OutOfRange {
                what: what.to_owned(),
                rule: "0 for never, or a second and more".to_owned(),
            });
        }
        if !(SHORTEST_CERTIFICATE..=LONGEST_CERTIFICATE).contains(&settings.certificate_lifetime) {
            let what = "the lifetime of certificates".to_owned();
            return Err(Refusal::OutOfRange { what, rule: "at least a minute, at most ten years".to_owned() });
        }
        if self.state.settings != *settings {
            self.changed = true;
            self.state.settings = settings.clone();
            self.tell(Subject::Cluster, || "the cluster's settings were changed".to_owned(), None);
        }
        Ok(())
    }

    fn set_controller(&mut self, controller: ControllerInfo) {
        self.changed = true;
        self.state.controllers.insert(controller.id, Arc::new(controller));
    }

    fn tell_controller(&mut self, controller: &ControllerName, message: impl FnOnce() -> String) {
        self.tell(Subject::Controller { controller: controller.clone() }, message, None);
    }
}

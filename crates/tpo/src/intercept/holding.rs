//! Puts what holds the closed rules ([`super::hold`]) into the kernel, looks whether it is still
//! there, and puts it back.
//!
//! It outlives the daemon: after a kill, and after an orderly end where [`Table::hold_closed`] says
//! so. The next daemon, or `tpo hold`, takes it over in place. [`remove`] takes it away.

use super::commands::load;
use super::error::InstallError;
use super::hold::{self, TABLE};
use super::routing::{Routing, RoutingRule};
use super::watch::Watch;
use crate::table::Table;
use std::path::Path;

/// The hand on what holds. Dropping it changes nothing in the kernel.
#[derive(Debug)]
pub(crate) struct Holding {
    watch: Watch,
    routing: Routing,
    /// The table; none: nothing is to be held.
    text: Option<String>,
    /// The routing rules of both address families; no IPv6 where the kernel knows none.
    rules: Vec<(bool, Vec<RoutingRule>)>,
    found: bool,
    whole: bool,
}

impl Holding {
    /// Puts in force what holds the closed rules of `table`, in the place of what an earlier run
    /// has left. Where no rule is closed, that is taken away.
    pub(crate) fn put(table: &Table) -> Result<Holding, InstallError> {
        let v6 = knows_ipv6();
        let text = hold::render(table, v6)?;
        let mut watch = Watch::open(TABLE).map_err(|error| InstallError::unseen(&error))?;
        let routing = Routing::open().map_err(|error| InstallError::unseen(&error))?;
        let found = watch
            .is_there()
            .map_err(|error| InstallError::unseen(&error))?;
        let families: &[bool] = if v6 { &[false, true] } else { &[false] };
        let rules = families
            .iter()
            .map(|v6| Ok((*v6, hold::routing(table, *v6)?.0)));
        let rules = rules.collect::<Result<Vec<_>, InstallError>>()?;
        let is_needed = text != hold::nothing();
        let mut holding = Holding {
            watch,
            routing,
            text: is_needed.then_some(text),
            rules,
            found,
            whole: false,
        };
        holding.restore()?;
        Ok(holding)
    }

    /// Whether an earlier run had left something that holds.
    pub(crate) fn was_there(&self) -> bool {
        self.found
    }

    /// Puts back what somebody else has removed; whether there was anything to put back. Costs some
    /// tens of microseconds when there was not.
    pub(crate) fn keep(&mut self) -> Result<bool, InstallError> {
        let table = self.text.is_none()
            || self
                .watch
                .table_is_whole()
                .map_err(|error| InstallError::unseen(&error))?;
        let mut routes = true;
        for (v6, rules) in &self.rules {
            routes &= self
                .routing
                .is_there(rules, *v6)
                .map_err(|error| InstallError::unseen(&error))?;
        }
        self.whole = table && routes;
        match self.whole {
            true => Ok(false),
            false => self.restore().map(|()| true),
        }
    }

    fn restore(&mut self) -> Result<(), InstallError> {
        // The one must not wait for the other to succeed.
        let routes = self.restore_routes();
        match &self.text {
            Some(text)
                if !self
                    .watch
                    .table_is_whole()
                    .map_err(|error| InstallError::unseen(&error))? =>
            {
                load(text)?;
                self.watch
                    .remember()
                    .map_err(|error| InstallError::unseen(&error))?;
            }
            Some(_) => {}
            None if self
                .watch
                .is_there()
                .map_err(|error| InstallError::unseen(&error))? =>
            {
                load(&hold::nothing())?
            }
            None => {}
        }
        routes?;
        self.whole = true;
        Ok(())
    }

    fn restore_routes(&mut self) -> Result<(), InstallError> {
        for (v6, rules) in &self.rules {
            let what = "add the routing rules that hold the closed rules";
            self.routing
                .put(rules, *v6)
                .map_err(|error| refused(what, &error))?;
        }
        Ok(())
    }
}

/// Takes away what holds. Does nothing where there is nothing.
pub(crate) fn remove() -> Result<(), InstallError> {
    let mut routing = Routing::open().map_err(|error| InstallError::unseen(&error))?;
    let what = "remove the routing rules that hold the closed rules";
    for v6 in [false, true] {
        match routing.put(&[], v6) {
            Err(error) if v6 && !knows_ipv6() => {
                tracing::debug!(%error, "no IPv6, so no rules of it")
            }
            done => done.map_err(|error| refused(what, &error))?,
        }
    }
    load(&hold::nothing())
}

fn refused(what: &'static str, error: &std::io::Error) -> InstallError {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => InstallError::NotPermitted {
            what,
            said: error.to_string(),
        },
        _ => InstallError::Refused {
            what,
            said: error.to_string(),
        },
    }
}

/// Whether this kernel has IPv6 at all. Not whether it is on: at boot, before the network comes up,
/// it may not be yet.
fn knows_ipv6() -> bool {
    Path::new("/proc/net/if_inet6").exists()
}

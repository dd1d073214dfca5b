//! Options and start of a training that an MPI launcher started as several processes.

use clap::{Args, ValueEnum};
use std::time::Duration;

use crate::error::Result;
use crate::train::group::{self, Link, Way};
use crate::train::{Share, Together};

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Several processes (under mpirun or srun)")]
pub struct GroupArgs {
    /// Add up gradients in the order of the processes: the same number of them gives the same bits in every run
    #[arg(long)]
    deterministic: bool,
    /// What gradients are sent as; what rounding to bf16 takes away is added to the next step's
    #[arg(long, value_enum, default_value = "f32")]
    reduce: Reduce,
    /// Keep the optimizer's moments once over all processes, not once in each
    #[arg(long)]
    shard_optimizer: bool,
    /// Seconds that a process waits for the others, once texts and models are read, before it gives the job up
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
    patience: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Reduce {
    /// As computed
    F32,
    /// Half the bytes, in the order of the processes
    Bf16,
}

impl GroupArgs {
    fn way(&self) -> Way {
        match (self.reduce, self.deterministic) {
            (Reduce::Bf16, _) => Way::Bf16,
            (Reduce::F32, true) => Way::InOrder,
            (Reduce::F32, false) => Way::Fastest,
        }
    }

    /// What all processes must have alike.
    pub fn describe(&self) -> String {
        format!("{:?}{}", self.way(), if self.shard_optimizer { ", moments shared out" } else { "" })
    }

    pub fn shard(&self) -> bool {
        self.shard_optimizer
    }

    /// What this process keeps of the optimizer's state.
    pub fn share(&self, together: &Together) -> Share {
        match self.shard_optimizer {
            true => Share { rank: together.rank(), size: together.size() },
            false => Share::WHOLE,
        }
    }

    pub fn patience(&self) -> Duration {
        Duration::from_secs(self.patience)
    }

    /// The others, where a launcher has started more than this process. The library of a cluster is opened here, and nowhere
    /// else.
    pub fn join(&self) -> Result<Together> {
        let Some(launch) = group::launched() else { return Ok(Together::alone()) };
        let link = Link::open(Box::new(move || group::mpi(&launch)), self.way())?;
        tracing::debug!("process {} of {} on {}", link.rank(), link.size(), link.place());
        Ok(Together::over(link))
    }
}

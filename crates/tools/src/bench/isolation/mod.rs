//! What a hostile client costs the clients of other devices.
//!
//! Two daemons serve the same devices. One of them is attacked, by a process of its own; each has as
//! many victims, one to a device that nobody attacks. The victims of the two are measured in turns while
//! the attack goes on: what it takes of the machine meets both, so that the ratio shows what the
//! attacked daemon lets it take from the others.

mod attack;
mod attacker;
mod attacks;
mod stage;
mod victims;

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;

pub(crate) use self::attack::{Attack, list};
use self::attacker::Attacker;
pub(crate) use self::attacker::{BenchAttack, run as run_attacker};
use self::stage::Stage;
use self::victims::{Victims, Waits, share_of};
use super::idle::Taken;
use super::random::Random;

/// A turn of the victims of one daemon.
const TURN: Duration = Duration::from_millis(250);

/// What was found of an attack.
#[derive(Debug, Serialize)]
pub(crate) struct Finding {
    attack: &'static str,
    /// How often the attack was made while it was measured.
    rounds: u64,
    /// Of the attacked daemon.
    victims: Waits,
    /// Of the other one.
    control: Waits,
    /// p99 of the victims by that of the control.
    ratio: f64,
    /// The quartiles of the same ratio, turn by turn.
    quartiles: [f64; 2],
    /// The attacked daemon before the attack, with its victims connected.
    before: Taken,
    /// After it.
    after: Taken,
}

/// The first lines of the table.
pub(super) fn head(victims: u32) -> String {
    format!(
        "{victims} victims each, on devices of their own; the attack runs during the turns of the \
         control, too.\n\n\
         | attack | rounds | replies | p50 | p99 | control p50 | p99 | ratio of p99 | by turns |\n\
         | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
    )
}

impl Finding {
    /// A line of the table.
    pub(super) fn line(&self) -> String {
        let Self { attack, rounds, victims, control, ratio, quartiles: [low, high], .. } = self;
        format!(
            "| {attack} | {rounds} | {} of {} | {:.2} ms | {:.2} ms | {:.2} ms | {:.2} ms | \
             **{ratio:.2} ×** | {low:.2} … {high:.2} |\n",
            victims.replies, victims.requests, victims.p50, victims.p99, control.p50, control.p99,
        )
    }
}

/// Makes an attack and measures it for about `time`.
///
/// # Errors
/// A victim did not get a reply, or got a wrong one; the daemon ended, or kept what the attack took; the
/// attack could not be made.
pub(super) fn measure(
    directory: &Path,
    attack: Attack,
    victims: u32,
    time: Duration,
) -> anyhow::Result<Finding> {
    let told = |error: anyhow::Error| error.context(format!("attack `{}`", attack.name()));
    measure_one(&directory.join(attack.name()), attack, victims, time).map_err(told)
}

fn measure_one(
    directory: &Path,
    attack: Attack,
    count: u32,
    time: Duration,
) -> anyhow::Result<Finding> {
    let attacked = Stage::start(&directory.join("attacked"), count)?;
    let control = Stage::start(&directory.join("control"), count)?;
    // What a daemon keeps of its first clients and of what they send is not kept of the attack.
    let mut settled = Victims::connect(&attacked, count)?;
    settled.run(TURN)?;
    attacked.assert_serves()?;
    drop(settled);
    attacked.await_clients(0)?;
    let mut settled = Victims::connect(&attacked, count)?;
    settled.run(TURN)?;
    let before = attacked.settled()?;
    drop(settled);

    let attacker = Attacker::start(attack, &attacked)?;
    // They come while the attack goes on: nothing that it takes may be missing for them.
    let connected = Victims::connect(&attacked, count).context("victims of the attacked daemon");
    let mut sides =
        [connected?, Victims::connect(&control, count).context("victims of the other daemon")?];
    sides.iter_mut().try_for_each(|side| side.run(TURN))?;
    sides.iter_mut().for_each(Victims::forget_waits);
    let (mut random, mut ratios) = (Random::of_now(), Vec::new());
    for _ in 0..(time.as_secs_f64() / (2.0 * TURN.as_secs_f64())).ceil() as u32 {
        let first = random.below(2) as usize;
        for side in [first, 1 - first] {
            sides[side].run(TURN).with_context(|| {
                ["a victim of the attacked daemon", "a victim of the other daemon"][side]
            })?;
        }
        let [victims, control] = sides.each_ref().map(Victims::last_p99);
        ratios.push(victims / control);
    }
    let rounds = attacker.stop()?;
    let after = attacked.await_level(&before, count)?;
    // The attacked devices serve the next client.
    attacked.assert_serves()?;
    let [victims, control_side] = sides.map(Victims::waits);
    attacked.terminate()?;
    control.terminate()?;
    ratios.sort_by(f64::total_cmp);
    Ok(Finding {
        attack: attack.name(),
        rounds,
        ratio: victims.p99 / control_side.p99,
        quartiles: [share_of(&ratios, 0.25), share_of(&ratios, 0.75)],
        victims,
        control: control_side,
        before,
        after,
    })
}

//! The ledger: who has taken what.
//!
//! Two locks for each resource: the account's, and that of what is common. The common one is taken only
//! by a charge that the share is too small for, with the account's lock held: so a charge that fails has
//! not taken anything away from another one of the same device, not even for a moment.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use rustix::io::Errno;
use vfiod_sync::{Mutex, lock};

use crate::debt::Debt;
use crate::limits::{Limit, Limits, Share, Size, part};
use crate::lines::Lines;
use crate::resource::{PerResource, Resource};
use crate::user::User;

/// How much of a resource is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Now.
    pub used: u64,
    /// At most.
    pub limit: u64,
}

/// More was asked for than a user may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{amount} {resource} more: the device's share of {share} is used up, and of the common {common} \
     one user has at most {user} and all together have {used} (limits.{})",
    resource.name()
)]
pub struct Exceeded {
    /// Of what.
    pub resource: Resource,
    /// How much more.
    pub amount: u64,
    /// What the device has for itself.
    pub share: u64,
    /// What is common.
    pub common: u64,
    /// What one user may have of that.
    pub user: u64,
    /// What all users have of it.
    pub used: u64,
}

impl Exceeded {
    /// What the client is told.
    pub fn errno(&self) -> Errno {
        self.resource.errno()
    }
}

/// A device cannot have its share of a resource.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{device} has {got} of its share of {wanted} {resource}: the shares of other devices are {reserved} \
     of {total}, and {used} of the common rest are in use (limits.{} and limits.reserved_{})",
    resource.name(),
    resource.name()
)]
pub struct Shortfall {
    /// The device.
    pub device: String,
    /// Of what.
    pub resource: Resource,
    /// The share that it was to have.
    pub wanted: u64,
    /// What it has.
    pub got: u64,
    /// The shares of other devices.
    pub reserved: u64,
    /// What there is in all.
    pub total: u64,
    /// What is in use of the common part.
    pub used: u64,
}

/// A device's account, and what it lacks.
#[derive(Debug)]
pub struct Opened {
    /// The account.
    pub account: Arc<Account>,
    /// Shares that are smaller than they were to be.
    pub shortfalls: Vec<Shortfall>,
}

/// Who has taken what, in one process.
#[derive(Debug)]
pub struct Ledger {
    limits: Limits,
    common: PerResource<Mutex<Common>>,
    users: Mutex<Users>,
}

/// What is kept of a user without a connection, for a while.
#[derive(Debug)]
struct Standing {
    user: User,
    debt: Debt,
    lines: Lines,
}

impl Drop for Standing {
    fn drop(&mut self) {
        self.log_suppressed();
    }
}

impl Standing {
    fn new(user: User) -> Self {
        Self { user, debt: Debt::default(), lines: Lines::default() }
    }

    /// Logs how many lines about the user were not logged, and counted in none after them.
    fn log_suppressed(&self) {
        let suppressed = self.lines.take_suppressed();
        if suppressed > 0 {
            let user = self.user;
            tracing::warn!(%user, suppressed, "lines about a user were not logged, as they were too many");
        }
    }

    fn matters(&self) -> bool {
        self.debt.pause().is_some() || self.lines.is_recent()
    }
}

#[derive(Debug, Default)]
struct Users {
    of: HashMap<User, Arc<Standing>>,
    /// How many there may be before those that do not matter are looked for.
    room: usize,
}

impl Users {
    fn of(&mut self, user: User) -> Arc<Standing> {
        if self.of.len() >= self.room {
            self.of.retain(|_, user| Arc::strong_count(user) > 1 || user.matters());
            self.room = 2 * self.of.len() + 64;
        }
        self.of.entry(user).or_insert_with(|| Arc::new(Standing::new(user))).clone()
    }
}

/// What is common of a resource.
#[derive(Debug, Default)]
struct Common {
    /// The devices' shares, with what they take themselves.
    reserved: u64,
    /// The devices' shares.
    shares: u64,
    used: u64,
    /// By user, without those who have nothing.
    users: HashMap<User, u64>,
}

/// What a device has. It is given back when the account is [closed](Account::close), or when nobody has it or a
/// charge of it any more; of what is in use then each part when its charge is dropped.
#[derive(Debug)]
pub struct Account {
    ledger: Arc<Ledger>,
    shares: PerResource<u64>,
    /// The shares, and what the device takes itself.
    reserved: PerResource<u64>,
    /// What is in use of the shares.
    used: PerResource<Mutex<Own>>,
}

/// What is in use of a device's share of a resource.
#[derive(Debug, Default)]
struct Own {
    used: u64,
    /// The device is there no more: what is given back is for others.
    is_closed: bool,
}

/// An account, and the user who is charged for what is beyond its shares.
#[derive(Clone, Debug)]
pub struct Payer {
    account: Arc<Account>,
    user: User,
    standing: Arc<Standing>,
    /// Whose lines of the log are limited together with the user's.
    logged: Arc<Standing>,
}

/// What a charge may be taken of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// All that there is.
    Must,
    /// Half of everything: the device's share, the common part, and what one user may have of that.
    Spare,
}

impl Need {
    fn of(self, amount: u64) -> u64 {
        match self {
            Self::Must => amount,
            Self::Spare => amount / 2,
        }
    }
}

/// What was taken. Dropping it gives it back.
#[derive(Debug)]
#[must_use]
pub struct Charge {
    payer: Payer,
    resource: Resource,
    /// Of the device's share.
    own: u64,
    /// Of the common part.
    common: u64,
}

impl Ledger {
    /// A ledger in which nobody has taken anything.
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, common: PerResource::default(), users: Mutex::default() })
    }

    /// Opens the account of a device, and reserves its shares.
    ///
    /// # Errors
    /// A share that was demanded cannot be had.
    pub fn open(self: &Arc<Self>, device: &str) -> Result<Opened, Shortfall> {
        let mut account = Account {
            ledger: self.clone(),
            shares: PerResource::default(),
            reserved: PerResource::default(),
            used: PerResource::default(),
        };
        let mut shortfalls = Vec::new();
        for resource in Resource::ALL {
            let limit = &self.limits[resource];
            let mut common = lock(&self.common[resource]);
            let own = common.own(limit);
            let (wanted, got) = common.affordable(limit, own);
            if got < wanted {
                let shortfall = Shortfall {
                    device: device.to_owned(),
                    resource,
                    wanted,
                    got,
                    reserved: common.reserved,
                    total: limit.common(0),
                    used: common.used,
                };
                if matches!(limit.share, Share::Demanded(_)) {
                    drop(common);
                    return Err(shortfall);
                }
                shortfalls.push(shortfall);
            }
            common.reserved += got + own;
            common.shares += got;
            account.reserved[resource] = got + own;
            account.shares[resource] = got;
        }
        Ok(Opened { account: Arc::new(account), shortfalls })
    }

    /// Logs how many lines about each user were not logged, and counted in none after them: before the end of
    /// the process.
    pub fn log_suppressed(&self) {
        let users: Vec<_> = lock(&self.users).of.values().cloned().collect();
        users.iter().for_each(|user| user.log_suppressed());
    }

    /// How much there is of a resource in all, for the devices that have an account.
    pub fn total(&self, resource: Resource) -> u64 {
        let reserved = lock(&self.common[resource]).reserved;
        match self.limits[resource].size {
            Size::Total(total) => total,
            Size::Common(common) => common.saturating_add(reserved),
        }
    }

    /// How much of the common part of a resource is in use.
    pub fn usage(&self, resource: Resource) -> Usage {
        let common = lock(&self.common[resource]);
        Usage { used: common.used, limit: self.limits[resource].common(common.reserved) }
    }
}

impl Common {
    /// What is set aside for what a further device takes itself: where there are very many, most have
    /// nothing open but a socket.
    fn own(&self, limit: &Limit) -> u64 {
        match limit.size {
            Size::Total(total) if self.reserved - self.shares + limit.own > part(total) / 4 => {
                limit.own.min(1)
            }
            _ => limit.own,
        }
    }

    /// The share that a further device is to have, and what it can have, if it takes `own` itself.
    fn affordable(&self, limit: &Limit, own: u64) -> (u64, u64) {
        let left = match limit.size {
            Size::Total(total) => {
                let taken = self.reserved.saturating_add(self.used).saturating_add(own);
                total.saturating_sub(taken)
            }
            Size::Common(_) => u64::MAX,
        };
        match (limit.share, limit.size) {
            (Share::Demanded(wanted), _) => (wanted, wanted.min(left)),
            (Share::UpTo(wanted), Size::Common(_)) => (wanted, wanted),
            (Share::UpTo(wanted), Size::Total(total)) => {
                let of_part = part(total).saturating_sub(self.shares);
                (wanted, wanted.min(left).min(of_part))
            }
        }
    }

    /// Takes `amount` for a user, of `size` in all.
    fn take(&mut self, user: User, amount: u64, size: u64) -> bool {
        if amount > size.saturating_sub(self.used) {
            return false;
        }
        let of_user = self.users.get(&user).copied().unwrap_or(0);
        if amount > most_of_user(size).saturating_sub(of_user) {
            return false;
        }
        self.users.insert(user, of_user + amount);
        self.used += amount;
        true
    }

    /// Has another user pay for `amount`, of `size` in all.
    fn transfer(&mut self, from: User, to: User, amount: u64, size: u64) -> bool {
        self.give_back(from, amount);
        let taken = self.take(to, amount, size);
        if !taken {
            self.used += amount;
            *self.users.entry(from).or_default() += amount;
        }
        taken
    }

    fn give_back(&mut self, user: User, amount: u64) {
        self.used -= amount;
        if let Entry::Occupied(mut of_user) = self.users.entry(user) {
            *of_user.get_mut() -= amount;
            if *of_user.get() == 0 {
                of_user.remove();
            }
        }
    }
}

/// What one user may have of what is common: one at least, so that little is of use, too.
fn most_of_user(common: u64) -> u64 {
    (common / 2).max(1)
}

impl Account {
    /// The ledger that it is in.
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// How much of the device's share of a resource is in use.
    pub fn usage(&self, resource: Resource) -> Usage {
        Usage { used: lock(&self.used[resource]).used, limit: self.shares[resource] }
    }

    /// Closes the account of a device that is there no more: what is not in use of its shares is for others,
    /// and so is each charge of them once it is given back. What is still charged is of the common part.
    pub fn close(&self) {
        for resource in Resource::ALL {
            let mut own = lock(&self.used[resource]);
            if !std::mem::replace(&mut own.is_closed, true) {
                let mut common = lock(&self.ledger.common[resource]);
                common.reserved -= self.reserved[resource] - own.used;
                common.shares -= self.shares[resource] - own.used;
            }
        }
    }

    /// Takes more: of the share what there is, the rest of the common part. Returns both.
    fn take(
        &self,
        resource: Resource,
        user: User,
        amount: u64,
        need: Need,
    ) -> Result<(u64, u64), Exceeded> {
        let mut of_share = lock(&self.used[resource]);
        let share = if of_share.is_closed { 0 } else { self.shares[resource] };
        let own = amount.min(need.of(share).saturating_sub(of_share.used));
        if own < amount {
            let mut common = lock(&self.ledger.common[resource]);
            let size = need.of(self.ledger.limits[resource].common(common.reserved));
            if !common.take(user, amount - own, size) {
                return Err(self.exceeded(resource, amount, size, common.used));
            }
        }
        of_share.used += own;
        Ok((own, amount - own))
    }

    /// Takes more of the common part only.
    fn take_common(&self, resource: Resource, user: User, amount: u64) -> Result<(), Exceeded> {
        let mut common = lock(&self.ledger.common[resource]);
        let size = self.ledger.limits[resource].common(common.reserved);
        if common.take(user, amount, size) {
            return Ok(());
        }
        Err(self.exceeded(resource, amount, size, common.used))
    }

    /// Why `amount` more cannot be had, where `size` is common and `used` of that in use.
    fn exceeded(&self, resource: Resource, amount: u64, size: u64, used: u64) -> Exceeded {
        let share = self.shares[resource];
        Exceeded { resource, amount, share, common: size, user: most_of_user(size), used }
    }

    fn give_back(&self, resource: Resource, user: User, own: u64, common: u64) {
        if common > 0 {
            lock(&self.ledger.common[resource]).give_back(user, common);
        }
        if own > 0 {
            let mut of_share = lock(&self.used[resource]);
            of_share.used -= own;
            if of_share.is_closed {
                let mut common = lock(&self.ledger.common[resource]);
                common.reserved -= own;
                common.shares -= own;
            }
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.close();
    }
}

impl Payer {
    /// Who pays for what `user` takes at the device of `account`.
    pub fn new(account: Arc<Account>, user: User) -> Self {
        // Lines about connections of accounts without a name are limited all together.
        let logged = user.or_unnamed();
        let mut users = lock(&account.ledger.users);
        let (standing, logged) = (users.of(user), users.of(logged));
        drop(users);
        Self { account, user, standing, logged }
    }

    /// The user.
    pub fn user(&self) -> User {
        self.user
    }

    /// What the user owes, at whatever device.
    pub fn debt(&self) -> &Debt {
        &self.standing.debt
    }

    /// The lines of the log about the user, at whatever device.
    pub fn lines(&self) -> &Lines {
        &self.logged.lines
    }

    /// The device's account.
    pub fn account(&self) -> &Arc<Account> {
        &self.account
    }

    /// Takes `amount` of a resource.
    ///
    /// # Errors
    /// The user may not have as much.
    pub fn charge(&self, resource: Resource, amount: u64) -> Result<Charge, Exceeded> {
        self.charge_by(resource, amount, Need::Must)
    }

    /// Takes `amount` of a resource for what could be done without, and leaves half for what could not: of
    /// the device's share, of the common part, and of what the user may have of that.
    ///
    /// # Errors
    /// There is not as much to spare.
    pub fn charge_spare(&self, resource: Resource, amount: u64) -> Result<Charge, Exceeded> {
        self.charge_by(resource, amount, Need::Spare)
    }

    fn charge_by(&self, resource: Resource, amount: u64, need: Need) -> Result<Charge, Exceeded> {
        let (own, common) = self.account.take(resource, self.user, amount, need)?;
        Ok(Charge { payer: self.clone(), resource, own, common })
    }

    /// Takes `amount` of what is common of a resource, and leaves the device's share alone.
    ///
    /// # Errors
    /// The user may not have as much.
    pub fn charge_common(&self, resource: Resource, amount: u64) -> Result<Charge, Exceeded> {
        self.account.take_common(resource, self.user, amount)?;
        Ok(Charge { payer: self.clone(), resource, own: 0, common: amount })
    }
}

impl Charge {
    /// Who pays for it.
    pub fn payer(&self) -> &Payer {
        &self.payer
    }

    /// How much it is.
    pub fn amount(&self) -> u64 {
        self.own + self.common
    }

    /// Whether some of it is of the common part.
    pub fn is_common(&self) -> bool {
        self.common > 0
    }

    /// Has another user of the same device pay for it. What is of the device's share stays so.
    ///
    /// # Errors
    /// The other user may not have as much, or is a client of another device; the charge is as before
    /// then.
    pub fn transfer(&mut self, to: &Payer) -> Result<(), Exceeded> {
        let Self { payer, resource, common: amount, .. } = &*self;
        let (account, resource, amount) = (&payer.account, *resource, *amount);
        let mut common = lock(&account.ledger.common[resource]);
        let size = account.ledger.limits[resource].common(common.reserved);
        let same = Arc::ptr_eq(account, &to.account);
        if !same || (amount > 0 && !common.transfer(payer.user, to.user, amount, size)) {
            return Err(account.exceeded(resource, amount, size, common.used));
        }
        drop(common);
        self.payer = to.clone();
        Ok(())
    }

    /// Makes it `amount`, more or less than it is.
    ///
    /// # Errors
    /// The user may not have as much; the charge is as before then.
    pub fn resize(&mut self, amount: u64) -> Result<(), Exceeded> {
        self.resize_by(amount, Need::Must)
    }

    /// Makes it `amount`, more or less than it is. More is taken as by [`Payer::charge_spare`].
    ///
    /// # Errors
    /// There is not as much to spare; the charge is as before then.
    pub fn resize_spare(&mut self, amount: u64) -> Result<(), Exceeded> {
        self.resize_by(amount, Need::Spare)
    }

    fn resize_by(&mut self, amount: u64, need: Need) -> Result<(), Exceeded> {
        let now = self.amount();
        let Payer { account, user, .. } = &self.payer;
        if amount > now {
            let (own, common) = account.take(self.resource, *user, amount - now, need)?;
            self.own += own;
            self.common += common;
            return Ok(());
        }
        // The common part first: others may need it.
        let common = self.common.min(now - amount);
        let own = now - amount - common;
        self.common -= common;
        self.own -= own;
        account.give_back(self.resource, *user, own, common);
        Ok(())
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let Payer { account, user, .. } = &self.payer;
        account.give_back(self.resource, *user, self.own, self.common);
    }
}

//! What an operator can ask of a controller that runs: namespaces come, go and change their sizes; limits change.

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vfiod_config::{Ending, Operated, OperatedModel};
use vfiod_core::dma::Completion;
use vfiod_core::{Errno, Error, Result};
use vfiod_directories::{directory_of, in_directory_to_disk};
use vfiod_disk::Disk;
use vfiod_pci::{Cx, ModelRef};

use crate::controller::Nvme;
use crate::namespace::Namespace;
use crate::open::twins;
use crate::options::NvmeOptions;
use crate::rate::{RateChange, RateLimits};
use crate::report::LimitStatus;
use crate::subsystem::Subsystems;

/// The operations.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum NvmeOperation {
    /// Adds a namespace on an image. What the options say of images is true of it.
    AddNamespace {
        /// The image: a regular file or a block device.
        #[schemars(extend("x-path" = "file"))]
        file: PathBuf,
        /// Its number; the lowest one that is free by default.
        #[serde(default)]
        nsid: Option<u32>,
    },
    /// Removes a namespace. The image is free for others when its last command has ended.
    RemoveNamespace {
        /// Its number.
        nsid: u32,
    },
    /// Gives hosts the size that an image has now, or gives the image a size.
    ResizeNamespace {
        /// Its number.
        nsid: u32,
        /// Bytes; by default those that the image has now.
        #[serde(default)]
        size: Option<u64>,
        /// Also if it becomes smaller: what is behind the new end is lost.
        #[serde(default)]
        force: bool,
    },
    /// Limits the I/O of all queues together, also of commands that wait. What is not given stays.
    SetLimits {
        /// I/O commands per second; 0: no limit.
        #[serde(default)]
        iops: Option<u64>,
        /// I/O commands that are carried out at once after a pause; 0: those of a tenth of a second.
        #[serde(default)]
        iops_burst: Option<u64>,
        /// Bytes per second that are read and written; 0: no limit.
        #[serde(default)]
        bandwidth: Option<u64>,
        /// Bytes that are read and written at once after a pause; 0: those of a tenth of a second.
        #[serde(default)]
        bandwidth_burst: Option<u64>,
    },
}

/// What came of an operation.
#[derive(Clone, Copy, Debug, Serialize)]
struct Outcome {
    nsid: u32,
    /// Bytes.
    size: u64,
}

fn refuse<T>(errno: Errno, what: impl Into<Cow<'static, str>>) -> Result<T> {
    Err(Error::new(errno, what))
}

fn not_there(nsid: u32) -> Error {
    Error::new(Errno::NOENT, format!("there is no namespace {nsid}"))
}

impl OperatedModel for Nvme {
    type Operation = NvmeOperation;

    fn options(&self) -> NvmeOptions {
        // Also those that an attribute of an instance has set.
        let mut options = self.running.clone();
        options.set_rate_limits(self.common.rate.limits());
        options
    }

    fn plan(operation: &mut NvmeOperation, options: &mut NvmeOptions) -> Result<()> {
        let is_of_all = matches!(
            operation,
            NvmeOperation::AddNamespace { .. } | NvmeOperation::RemoveNamespace { .. }
        );
        if options.shared && is_of_all {
            let what = "a controller that is `shared` has the namespaces that the others of its subsystem have; \
                        change `files` of all of them, and start them anew";
            return refuse(Errno::OPNOTSUPP, what);
        }
        match operation {
            NvmeOperation::AddNamespace { file, nsid } => {
                let number = plan_number(options, *nsid)?;
                *nsid = Some(number);
                let files = options.numbered().map(|(number, path)| (number, path.clone()));
                let files = files.chain([(number, file.clone())]).collect();
                options.set_numbered(files);
            }
            NvmeOperation::RemoveNamespace { nsid: 1 } => {
                let what = "namespace 1 stays: who the controller is, is kept with it. Remove the device (`del`)";
                return refuse(Errno::INVAL, what);
            }
            NvmeOperation::RemoveNamespace { nsid } => {
                let files = options.numbered().map(|(number, path)| (number, path.clone()));
                let (gone, kept): (Vec<_>, Vec<_>) = files.partition(|(number, _)| number == nsid);
                if gone.is_empty() {
                    return Err(not_there(*nsid));
                }
                options.set_numbered(kept);
            }
            // An option says where the size is: with the image.
            NvmeOperation::ResizeNamespace { .. } => {}
            NvmeOperation::SetLimits { iops, iops_burst, bandwidth, bandwidth_burst } => {
                let (iops, iops_burst) = (*iops, *iops_burst);
                let (bandwidth, bandwidth_burst) = (*bandwidth, *bandwidth_burst);
                let change = RateLimits { iops, iops_burst, bandwidth, bandwidth_burst };
                let limits = options.rate_limits().changed(RateChange(change))?;
                options.set_rate_limits(limits);
            }
        }
        Ok(())
    }

    fn operate(device: &ModelRef<Self>, operation: NvmeOperation) -> Result<Operated> {
        match &operation {
            NvmeOperation::AddNamespace { file, nsid } => {
                let nsid = nsid.ok_or_else(|| not_there(0))?;
                let look = |nvme: &mut Nvme, cx: &Cx<Nvme>| {
                    (nvme.running.clone(), nvme.common.clone(), cx.common::<Subsystems>())
                };
                let (options, common, subsystems) = device.step(look)?;
                let volume = Arc::new(options.open_another(nsid, file)?);
                if let Some(seat) = &common.seat {
                    subsystems.add(seat, &volume)?;
                }
                let namespace = Arc::new(Namespace::new(nsid, volume.clone()));
                let size = namespace.capacity();
                let add = |nvme: &mut Nvme, cx: &Cx<Nvme>| {
                    nvme.add_namespace(cx, namespace, operation.clone())
                };
                let added = device.step(add).and_then(std::convert::identity);
                if let (Err(_), Some(seat)) = (&added, &common.seat) {
                    seat.forget(&volume);
                }
                added?;
                Ok(Operated::with(Outcome { nsid, size }))
            }
            NvmeOperation::RemoveNamespace { nsid } => {
                let nsid = *nsid;
                let remove = |nvme: &mut Nvme, _: &Cx<Nvme>| -> Result<Arc<Namespace>> {
                    Self::plan(&mut operation.clone(), &mut nvme.running)?;
                    let namespace = nvme.common.namespaces.remove(nsid);
                    let namespace = namespace.ok_or_else(|| not_there(nsid))?;
                    nvme.error_recovery.set(nsid, 0);
                    nvme.saved_error_recovery.set(nsid, 0);
                    namespace.has_changed(None);
                    if let Some(seat) = &nvme.common.seat {
                        seat.forget(namespace.volume());
                    }
                    Ok(namespace)
                };
                let namespace: Arc<Namespace> = device.step(remove)??;
                let size = namespace.capacity();
                let left = namespace.leave();
                let ending: Ending = Box::pin(async move {
                    left.await;
                    Ok(())
                });
                Ok(Operated { ending: Some(ending), ..Operated::with(Outcome { nsid, size }) })
            }
            NvmeOperation::ResizeNamespace { nsid, size, force } => {
                resize(device, *nsid, *size, *force)
            }
            NvmeOperation::SetLimits { .. } => {
                let set = |nvme: &mut Nvme, _: &Cx<Nvme>| -> Result<LimitStatus> {
                    let mut options = nvme.options();
                    Self::plan(&mut operation.clone(), &mut options)?;
                    nvme.common.rate.set(options.rate_limits());
                    nvme.running = options;
                    Ok(LimitStatus::of(&nvme.common.rate))
                };
                Ok(Operated::with(device.step(set)??))
            }
        }
    }
}

/// The number of a namespace that is to be added.
fn plan_number(options: &NvmeOptions, wanted: Option<u32>) -> Result<u32> {
    if options.file.is_none() {
        let what = "the controller's first namespace is no image, so that no configuration could say what \
                    it has then; serve it with the option `file`";
        return refuse(Errno::INVAL, what);
    }
    let most = options.max_namespaces();
    let is_taken =
        |number: u32| number == 1 || options.numbered().any(|(other, _)| other == number);
    match wanted {
        Some(number) if !(1..=most).contains(&number) => {
            let what = format!("a namespace cannot have the number {number}; `namespaces` allows 1 to {most}");
            refuse(Errno::INVAL, what)
        }
        Some(number) if is_taken(number) => {
            let what = format!("there is a namespace {number} already; leave the number out for a free one");
            refuse(Errno::EXIST, what)
        }
        Some(number) => Ok(number),
        None => (1..=most).find(|number| !is_taken(*number)).ok_or_else(|| {
            let what = format!(
                "there are {most} namespaces, as many as `namespaces` allows; remove one, or serve the \
                 controller with a larger number"
            );
            Error::new(Errno::USERS, what)
        }),
    }
}

impl Nvme {
    fn add_namespace(
        &mut self,
        cx: &Cx<Self>,
        namespace: Arc<Namespace>,
        mut operation: NvmeOperation,
    ) -> Result<()> {
        let mut running = self.running.clone();
        Self::plan(&mut operation, &mut running)?;
        if let NvmeOperation::AddNamespace { file, .. } = &operation
            && let Some(twin) = self.common.namespaces.all().find(|one| one.has_id_of(&namespace))
        {
            return Err(twins(file, twin.id));
        }
        if self.common.offers.deallocation && namespace.limits.deallocate.is_none() {
            let what = "the controller has told the host that space can be given back, and the file system of \
                        this image has no holes; put the image elsewhere, or into the configuration from the \
                        start";
            return refuse(Errno::OPNOTSUPP, what);
        }
        namespace.connect(cx.runtime(), cx.flights(), cx.payer())?;
        if let Some(own) = &self.neighbour {
            namespace.tell(own);
        }
        let saved = self.common.load_error_recovery(&namespace);
        self.error_recovery.set(namespace.id, saved);
        self.saved_error_recovery.set(namespace.id, saved);
        self.common.namespaces.add(namespace.clone());
        self.running = running;
        namespace.has_changed(None);
        Ok(())
    }
}

/// Gives a namespace another size.
fn resize(device: &ModelRef<Nvme>, nsid: u32, size: Option<u64>, force: bool) -> Result<Operated> {
    let find = |nvme: &mut Nvme, _: &Cx<Nvme>| {
        let path = match nsid {
            1 => nvme.running.file.clone(),
            _ => {
                nvme.running.numbered().find(|(number, _)| *number == nsid).map(|one| one.1.clone())
            }
        };
        let managed = nvme.managed.clone().filter(|_| nsid == 1);
        (nvme.common.namespaces.get(nsid), path, managed)
    };
    let (namespace, path, managed) = device.step(find)?;
    let namespace = namespace.ok_or_else(|| not_there(nsid))?;
    let on_disk = move |disk: Disk, call: fn(&Disk, u64) -> Result<u64>, bytes: u64| match &path {
        Some(path) => in_directory_to_disk(directory_of(path), move || call(&disk, bytes))?,
        None => call(&disk, bytes),
    };
    let resizing = namespace.begin_resize()?;
    let disk = namespace.disk.clone();
    let has = on_disk(disk.clone(), |disk, _| Ok(disk.size_now()), 0)?;
    let (new, old) = (size.unwrap_or(has), namespace.capacity());
    let block = 1u64 << namespace.block_shift();
    if new == 0 || !new.is_multiple_of(block) {
        let what = format!(
            "namespace {nsid} cannot have {new} bytes: its blocks have {block}; the next larger size is {}",
            new.max(1).next_multiple_of(block)
        );
        return refuse(Errno::INVAL, what);
    }
    if new < old && !force {
        let what = format!(
            "namespace {nsid} has {old} bytes, and would have {new}: what is behind them would be lost to its \
             host; with `force` it becomes smaller all the same"
        );
        return refuse(Errno::BUSY, what);
    }
    if namespace.limits.read_only && size.is_some_and(|size| size != has) {
        let what = format!("namespace {nsid} is read-only; change the size of its image yourself");
        return refuse(Errno::ROFS, what);
    }
    let tell = |nvme: &mut Nvme, _: &Cx<Nvme>| {
        // It may have gone meanwhile: then nobody has it.
        let is_there =
            nvme.common.namespaces.get(nsid).is_some_and(|one| Arc::ptr_eq(&one, &namespace));
        if is_there && new != namespace.capacity() {
            namespace.set_capacity(new);
            namespace.has_changed(None);
        }
    };
    let mut operated = Operated::with(Outcome { nsid, size: new });
    if new >= old {
        let room = managed.map(|image| image.make_room(new)).transpose()?;
        let set = |disk: &Disk, bytes: u64| disk.set_size(bytes).map(|()| bytes);
        let grown = if new == has { |disk: &Disk, _| Ok(disk.refresh().capacity) } else { set };
        on_disk(disk, grown, new)?;
        if let Some(room) = room {
            room.take();
        }
        device.step(tell)?;
        return Ok(operated);
    }
    // Hosts see it first; what is under way behind the new end must end before that is cut off, and would
    // make the file longer again.
    device.step(tell)?;
    operated.ending = Some(Box::pin(async move {
        let _resizing = resizing;
        disk.cut(new).await;
        let (completion, reply) = Completion::new();
        let thread = std::thread::Builder::new().name("resize".to_owned());
        let cut = move || {
            let cut = if new == has { Ok(()) } else { disk.set_size(new) };
            if let (Ok(()), Some(image)) = (&cut, managed) {
                image.has_size(new);
            }
            completion.complete(cut);
        };
        thread.spawn(cut).map_err(|error| {
            let errno = error.raw_os_error().map_or(Errno::AGAIN, Errno::from_raw_os_error);
            Error::new(errno, "no thread to cut the image off").because(error)
        })?;
        reply.await
    }));
    Ok(operated)
}

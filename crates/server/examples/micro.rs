//! Processor time for each message, client included.
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use vfiod_core::*;
struct Dev {
    value: u32,
}
impl Device for Dev {
    #[cfg(any())]
    fn x() {}
    fn persistence(&mut self) -> Persistence<'_> {
        Persistence::Stateless
    }
    fn describe(&self) -> Description {
        Description {
            flags: DeviceFlags::RESET,
            regions: vec![Region::registers(0x1000)],
            irqs: vec![],
        }
    }
    fn init(&mut self, _ctx: &Context) -> Result<()> {
        Ok(())
    }
    fn open_device(&mut self) -> Result<()> {
        Ok(())
    }
    fn close_device(&mut self) {}
    fn read(&mut self, _r: RegionIndex, _o: u64, data: &mut [u8]) -> Result<()> {
        data.copy_from_slice(&self.value.to_ne_bytes()[..data.len()]);
        Ok(())
    }
    fn write(&mut self, _r: RegionIndex, _o: u64, data: &[u8]) -> Result<()> {
        self.value = data[0] as u32;
        Ok(())
    }
    fn reset(&mut self, _c: ResetCause) -> Result<()> {
        Ok(())
    }
}
fn cpu() -> f64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    t.tv_sec as f64 * 1e9 + t.tv_nsec as f64
}
fn msg(id: u16, cmd: u16, posted: bool, payload: &[u8]) -> Vec<u8> {
    let mut m = Vec::new();
    m.extend(id.to_ne_bytes());
    m.extend(cmd.to_ne_bytes());
    m.extend((16 + payload.len() as u32).to_ne_bytes());
    m.extend((if posted { 16u32 } else { 0 }).to_ne_bytes());
    m.extend(0u32.to_ne_bytes());
    m.extend(payload);
    m
}
fn main() {
    let registry = Registry::new();
    let reg = registry
        .register(DeviceSpec { name: "d".into(), ..Default::default() }, Box::new(Dev { value: 1 }))
        .unwrap();
    let server = vfiod_server::Server::new(Default::default()).unwrap();
    let (mut c, s) = UnixStream::pair().unwrap();
    let _served = server.serve_connected(s.into(), reg.device().clone()).unwrap();
    c.write_all(&msg(0, 1, false, b"\0\0\0\0{}\0")).unwrap();
    let mut buf = vec![0u8; 1 << 16];
    c.read(&mut buf).unwrap();
    let access = {
        let mut p = vec![0u8; 8];
        p.extend(0u32.to_ne_bytes());
        p.extend(4u32.to_ne_bytes());
        p
    };
    let read = msg(1, 9, false, &access);
    let mut wp = access.clone();
    wp.extend([1, 2, 3, 4]);
    let post = msg(1, 10, true, &wp);
    let batch: Vec<u8> = read.repeat(256);
    let posts: Vec<u8> = post.repeat(256);
    let mut best = [f64::MAX; 3];
    for _ in 0..40 {
        let t = cpu();
        for _ in 0..2000 {
            c.write_all(&read).unwrap();
            c.read_exact(&mut buf[..36]).unwrap();
        }
        best[0] = best[0].min((cpu() - t) / 2000.0);
        let t = cpu();
        for _ in 0..100 {
            c.write_all(&batch).unwrap();
            c.read_exact(&mut buf[..36 * 256]).unwrap();
        }
        best[1] = best[1].min((cpu() - t) / 25600.0);
        let t = cpu();
        for _ in 0..100 {
            c.write_all(&posts).unwrap();
            c.write_all(&read).unwrap();
            c.read_exact(&mut buf[..36]).unwrap();
        }
        best[2] = best[2].min((cpu() - t) / 25700.0);
    }
    println!(
        "round trip {:.0} ns, read in a batch of 256 {:.1} ns, posted write in a batch {:.1} ns",
        best[0], best[1], best[2]
    );
    let _ = (Duration::ZERO, Instant::now());
}

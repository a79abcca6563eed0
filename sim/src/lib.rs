//! The cluster in one seeded thread: virtual time, faulty network, disks and clocks.

/* Kernel constants that only libc's headers spell out, and those cannot be included for BPF. */
#ifndef MELTEMI_BPF_KERNEL_H
#define MELTEMI_BPF_KERNEL_H

#include <asm/socket.h> /* SOL_SOCKET, SO_MARK, SO_BINDTOIFINDEX */
#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/in6.h>

#define AF_INET 2
#define AF_INET6 10
#define LOOPBACK_IFINDEX 1 /* the first device of every netns */

/* What a cgroup/connect program returns. */
enum { DENY = 0, ALLOW = 1 };

#endif /* MELTEMI_BPF_KERNEL_H */

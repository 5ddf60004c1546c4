/* The object behind slots.h, shared by its two sides. Inner header of the room. */
#ifndef MPISERVE_SLOTS_INNER_H
#define MPISERVE_SLOTS_INNER_H

#include "mpiserve/slots.h"
#include "slots/window.h"

/* What an ingress knows of a leader's slots. */
struct slots_far {
    u64 *seen; /* [n] each word as last seen, or a guess; NULL: nothing reserved there yet */
    u32 n;
    u32 hint;   /* where the next pass starts */
    u32 n_own;  /* bits in own */
    u32 others; /* in use by other ingresses, as last published */
    u64 own[SLOTS_PER_RANK /
            64]; /* slots that this ingress holds, reserved or dispatched; seen has their words */
};

/* What a leader knows of its own slots. */
struct slots_near {
    i32 replica; /* -1: leads none */
    u32 n;
    u64 *words;    /* [n] as last seen */
    u64 *since_ns; /* [n] when this reservation was first seen; 0: none is */
    u64 looked_ns; /* last scan for leases */
    u32 in_use, reserved;
};

struct slots {
    struct slot_window *window;
    u16 owner;
    u32 epoch, rank, n_ranks;
    u64 lease_ns[2];       /* by enum slot_class */
    struct slots_far *far; /* [n_ranks] */
    struct slots_near near;
    struct slots_counts counts;
};

#endif

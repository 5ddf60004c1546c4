/* The MPI window under slots: memory of this rank, and CAS on anyone's word. Inner header of the room. */
#ifndef MPISERVE_SLOTS_WINDOW_H
#define MPISERVE_SLOTS_WINDOW_H

#include "mpiserve/slots.h"

struct slot_window;
/* Collective. All words start CLOSED, with this epoch and seq 0. */
struct slot_window *slot_window_new(const struct slots_spec *spec, struct error *err);
void slot_window_free(struct slot_window *w);    /* collective */
void slot_window_abandon(struct slot_window *w); /* no MPI call */
u32 slot_window_ranks(const struct slot_window *w);
u32 slot_window_rank(const struct slot_window *w);
/* *old: the word before; it was replaced iff *old == expected. */
int slot_window_cas(struct slot_window *w, u32 rank, u32 slot, u64 expected, u64 desired, u64 *old,
                    struct error *err);
/* Reads words [first, first + n) with one flush: each by CAS of a value that is never there. */
int slot_window_read(struct slot_window *w, u32 rank, u32 first, u32 n, u64 *out, struct error *err);
u64 slot_window_operations(const struct slot_window *w);

#endif

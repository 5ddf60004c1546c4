/* Inside agent/: is a name one of this machine's? */
#ifndef MPISERVE_AGENT_ADDRESS_H
#define MPISERVE_AGENT_ADDRESS_H

#include "mpiserve/base.h"

/* 0 when `name` (a host name, an IPv4 or IPv6 address, localhost) is or resolves to an address of this machine, its loopback included.
 * Else ERR_INPUT, and the message says what it is and which addresses are here. where: for the error. */
int address_check_own(const char *name, const char *where, struct error *err);
bool address_is_loopback(const char *name);

#endif

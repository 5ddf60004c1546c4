/* key: the job's API key, from MPISERVE_API_KEY, --api-key-file, or drawn. Inside agent/. */
#ifndef MPISERVE_AGENT_KEY_H
#define MPISERVE_AGENT_KEY_H

#include "mpiserve/base.h"
#include "mpiserve/config.h"

enum { KEY_LEN = 256 };
/* key[0] = 0: none is asked for (--api-key none). Errors name the source and what a key is made of. */
int key_find(const struct config *c, char key[KEY_LEN], struct error *err);

#endif

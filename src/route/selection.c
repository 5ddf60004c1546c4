/* The life of one choice. */
#include "mpiserve/route.h"

void selection_choose(struct selection *s, u32 leader, const struct slot_token *token)
{
    BUG_ON(s->state != SELECTION_NONE);
    s->state = SELECTION_CHOSEN;
    s->leader = leader;
    s->token = *token;
    s->tries++;
}

void selection_dispatch(struct selection *s)
{
    BUG_ON(s->state != SELECTION_CHOSEN);
    s->state = SELECTION_DISPATCHED;
}

void selection_release(struct selection *s)
{
    BUG_ON(s->state != SELECTION_CHOSEN);
    s->state = SELECTION_NONE;
}

void selection_end(struct selection *s)
{
    BUG_ON(s->state != SELECTION_DISPATCHED);
    s->state = SELECTION_NONE;
}

bool selection_holds_slot(const struct selection *s)
{
    return s->state == SELECTION_CHOSEN;
}

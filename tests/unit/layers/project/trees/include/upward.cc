// An include that climbs from L2 to L3.
#include "userspace/net/stream.h"

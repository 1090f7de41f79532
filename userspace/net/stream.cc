// See stream.h.
#include "userspace/net/stream.h"

namespace meltemi::net {

void RetireStream::operator()(ByteStream* stream) const {
  stream->set_events(nullptr);
  stream->detach();
  stream->loop().retire(std::unique_ptr<rt::Retirable>(stream));
}

}  // namespace meltemi::net

// The waypoint's HTTP/2 server and nghttp2's, fed with the same bytes of a client: what we take for
// a request, with the same fields and body, nghttp2 must take for one too. The other way round we
// may be stricter. This is the guard against smuggling by leniency.
#include <nghttp2/nghttp2.h>

#include <map>
#include <string>

#include "tests/fuzz/codec/input.h"
#include "userspace/codec/h2.h"
#include "userspace/codec/h2_frame.h"

using namespace meltemi;
using namespace meltemi::codec;

namespace {

const MonoTime kNow{std::chrono::hours(1)};

struct Request {
  std::string head, body;
  bool complete = false;
};
using Requests = std::map<uint32_t, Request>;

struct Ours : H2Handler, H2Sink {
  H2Session session;
  Requests requests;
  explicit Ours(const H2Options& o) : session(H2Role::kServer, *this, o) {}
  void append(ByteView) override {}
  void on_head(uint32_t id, HeaderList& h, bool end) override {
    for (const HeaderField f : h)
      requests[id].head += std::string(f.name) + '\0' + std::string(f.value) + '\0';
    requests[id].complete = end;
  }
  void on_data(uint32_t id, ByteView d) override {
    requests[id].body += as_text(d);
    session.consume(id, d.size());
  }
  void on_end(uint32_t id, const HeaderList&) override { requests[id].complete = true; }
  void on_closed(uint32_t, uint32_t, bool) override {}
};

struct Theirs {
  nghttp2_session* session = nullptr;
  Requests requests;
  Theirs() {
    nghttp2_session_callbacks* cb;
    nghttp2_session_callbacks_new(&cb);
    nghttp2_session_callbacks_set_on_header_callback(
        cb, [](nghttp2_session*, const nghttp2_frame* f, const uint8_t* n, size_t nl,
               const uint8_t* v, size_t vl, uint8_t, void* self) {
          if (f->headers.cat != NGHTTP2_HCAT_REQUEST) return 0;
          std::string& head = of(self)[static_cast<uint32_t>(f->hd.stream_id)].head;
          head += as_text({n, nl});
          head += '\0';
          head += as_text({v, vl});
          head += '\0';
          return 0;
        });
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(
        cb, [](nghttp2_session*, uint8_t, int32_t id, const uint8_t* d, size_t n, void* self) {
          of(self)[static_cast<uint32_t>(id)].body += as_text({d, n});
          return 0;
        });
    nghttp2_session_callbacks_set_on_frame_recv_callback(
        cb, [](nghttp2_session*, const nghttp2_frame* f, void* self) {
          const bool message = f->hd.type == NGHTTP2_HEADERS || f->hd.type == NGHTTP2_DATA;
          if (message && (f->hd.flags & NGHTTP2_FLAG_END_STREAM) != 0)
            of(self)[static_cast<uint32_t>(f->hd.stream_id)].complete = true;
          return 0;
        });
    nghttp2_option* option = nullptr;
    nghttp2_option_new(&option);
    nghttp2_option_set_max_settings(option, h2::kMaxSettings);
    nghttp2_session_server_new2(&session, cb, this, option);
    nghttp2_option_del(option);
    nghttp2_session_callbacks_del(cb);
    const nghttp2_settings_entry iv[] = {{NGHTTP2_SETTINGS_ENABLE_CONNECT_PROTOCOL, 1}};
    nghttp2_submit_settings(session, NGHTTP2_FLAG_NONE, iv, 1);
  }
  ~Theirs() { nghttp2_session_del(session); }
  static Requests& of(void* self) { return static_cast<Theirs*>(self)->requests; }
  void drop_output() {
    const uint8_t* p;
    while (nghttp2_session_mem_send(session, &p) > 0) {
    }
  }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  H2Options options;
  options.initial_stream_window = h2::kDefaultWindow;
  options.connection_window = h2::kDefaultWindow;
  Ours ours(options);
  Theirs theirs;
  ours.session.flush(ours, 1 << 20);
  theirs.drop_output();
  const std::string in = std::string(h2::kPreface) + std::string("\0\0\0\4\0\0\0\0\0", 9) +
                         std::string(reinterpret_cast<const char*>(data), size);
  // nghttp2 stops at its own idea of a broken connection; what came before must agree.
  const bool they_go_on = nghttp2_session_mem_recv(theirs.session, as_bytes(in).data(),
                                                   in.size()) == static_cast<ssize_t>(in.size());
  theirs.drop_output();
  (void)ours.session.receive(as_bytes(in), kNow);
  ours.session.flush(ours, 1 << 20);
  // After a connection error of nghttp2's, it reads on without telling.
  if (!they_go_on || nghttp2_session_want_read(theirs.session) == 0) return 0;
  for (const auto& [id, ours_one] : ours.requests) {
    const auto it = theirs.requests.find(id);
    fuzz::require(it != theirs.requests.end());
    fuzz::require(ours_one.head == it->second.head);
    fuzz::require(it->second.body.starts_with(ours_one.body));
    if (ours_one.complete && it->second.complete) fuzz::require(ours_one.body == it->second.body);
  }
  return 0;
}

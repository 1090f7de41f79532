// Columns, aligned as kubectl aligns them: three spaces between, no trailing blanks.
#pragma once

#include <string>
#include <vector>

namespace meltemi::cli {

class Table {
 public:
  explicit Table(std::vector<std::string> header) { rows_.push_back(std::move(header)); }
  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  bool empty() const { return rows_.size() <= 1; }
  // With `no_header`, the rows alone. Control characters in cells are shown escaped.
  std::string text(bool no_header = false) const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

// "5s", "3m12s", "4h5m", "2d3h" since an RFC 3339 time; "<unknown>" if it is none.
std::string age_of(const std::string& timestamp);
// The same for what is to come; "0s" if it is past.
std::string time_until(const std::string& timestamp);

}  // namespace meltemi::cli

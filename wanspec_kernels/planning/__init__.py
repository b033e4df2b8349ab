"""Which drafters to use, with which trees and policy, and what to expect; or why nobody can say."""
